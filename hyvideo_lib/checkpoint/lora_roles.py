"""What the tensors of a LoRA's module must be for each method, by their roles and shapes, as a header tells them.

What is made of them is in `lora.making`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .lora_layers import LayerSize
from .lora_tensors import (
    ALPHA,
    BIAS_DIFF,
    DIFF,
    DOWN,
    HADA,
    HADA_CORES,
    LOKR,
    MAGNITUDE,
    MID,
    OFT_BLOCKS,
    OFT_R,
    OFT_SCALED,
    RESCALE,
    UP,
    UP_BIAS,
)

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Made = tuple[int | None, int | None]


FLOATS = frozenset(("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"))
NUMBERS = FLOATS | {"int64", "int32", "int16", "int8", "uint8", "bool"}


def stored_dtypes(role: str) -> frozenset[str]:
    """What a tensor of that role may be stored as: matrices in floating-point numbers, alpha in any."""
    return NUMBERS if role in (ALPHA, OFT_SCALED) else FLOATS


@dataclass(frozen=True)
class Extent:
    """The matrix that a module is about: rows of its layer's weight. size: of the layer."""

    rows: int
    size: LayerSize

    @property
    def width(self) -> int:
        return self.size.in_features


@dataclass(frozen=True)
class Method:
    """One way of changing a matrix. needs, takes: roles that must and may be there; is_whole: whether they suffice.

    rank: what alpha is divided by, of the shapes; None where there is nothing to divide. fits: whether shapes make a
    matrix of that extent. made: rows and columns that shapes are of, each None where they do not tell.
    """

    needs: frozenset[str]
    takes: frozenset[str]
    rank: Callable[[Shapes], int | None]
    fits: Callable[[Shapes, Extent], bool]
    made: Callable[[Shapes], Made]
    is_whole: Callable[[frozenset[str]], bool] = bool


def flat(shape: Shape) -> Shape:
    """The shape of a matrix, if the dimensions behind its second one are counted into that."""
    return shape if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _first(role: str) -> Callable[[Shapes], int | None]:
    return lambda shapes: next(iter(shapes[role]), None) if role in shapes else None


def _has(shapes: Shapes, wanted: Mapping[str, Shape]) -> bool:
    return all(flat(shapes[role]) == shape for role, shape in wanted.items())


def _fits_lora(shapes: Shapes, extent: Extent) -> bool:
    rank = shapes[DOWN][0] if shapes[DOWN] else 0
    return rank > 0 and _has(shapes, {DOWN: (rank, extent.width), UP: (extent.rows, rank)})


def _fits_tucker(core: Shape, up: Shape, down: Shape, extent_rows: int, width: int) -> bool:
    """core [R, R, kernel...]; up [R, rows], down [R, in]."""
    if len(core) < 2 or not core[0] or len(flat(up)) < 2 or len(flat(down)) < 2:
        return False
    kernel = math.prod(core[2:])
    return core[0] == core[1] and flat(up) == (core[0], extent_rows) and flat(down) == (core[0], width // kernel)


def _fits_tucker_lora(shapes: Shapes, extent: Extent) -> bool:
    up = flat(shapes[UP])
    return len(up) == 2 and _fits_tucker(shapes[MID], up[::-1], shapes[DOWN], extent.rows, extent.width)


def _fits_loha(shapes: Shapes, extent: Extent) -> bool:
    for core, up, down in ((HADA_CORES[0], HADA[0], HADA[1]), (HADA_CORES[1], HADA[2], HADA[3])):
        if core in shapes:
            fits = _fits_tucker(shapes[core], shapes[up], shapes[down], extent.rows, extent.width)
        else:
            rank = shapes[down][0] if shapes[down] else 0
            fits = rank > 0 and _has(shapes, {up: (extent.rows, rank), down: (rank, extent.width)})
        if not fits:
            return False
    return True


def _has_both_sides(roles: frozenset[str]) -> bool:
    """Each of LoKr's two matrices as it is or as a product, and not both."""
    for number in "12":
        parts = {f"lokr_w{number}_a", f"lokr_w{number}_b"} & roles
        if len(parts) == 1 or (f"lokr_w{number}" in roles) == bool(parts):
            return False
    return "lokr_t2" not in roles or "lokr_w2" not in roles


def _sides(shapes: Shapes) -> tuple[Shape, Shape] | None:
    """Shapes [a, b] and [c, d] of LoKr's two matrices; None where they do not fit together."""
    sides: list[Shape] = []
    for number in "12":
        whole, up, down, core = (f"lokr_w{number}", f"lokr_w{number}_a", f"lokr_w{number}_b", f"lokr_t{number}")
        if whole in shapes:
            side = flat(shapes[whole])
        elif core in shapes:
            kernel = math.prod(shapes[core][2:])
            side = (flat(shapes[up])[-1], flat(shapes[down])[-1] * kernel)
            if not _fits_tucker(shapes[core], shapes[up], shapes[down], side[0], side[1]):
                return None
        else:
            first, second = flat(shapes[up]), flat(shapes[down])
            if len(first) != 2 or len(second) != 2 or first[1] != second[0]:
                return None
            side = (first[0], second[1])
        if len(side) != 2 or not all(side):
            return None
        sides.append(side)
    return sides[0], sides[1]


def _fits_lokr(shapes: Shapes, extent: Extent) -> bool:
    sides = _sides(shapes)
    return sides is not None and tuple(a * b for a, b in zip(*sides, strict=True)) == (extent.rows, extent.width)


def _lokr_rank(shapes: Shapes) -> int | None:
    """Of what is a product; two whole matrices have none, and their alpha says nothing."""
    for role in ("lokr_w2_b", "lokr_w1_b"):
        if shapes.get(role):
            return shapes[role][0]
    return None


def _fits_oft_outputs(shapes: Shapes, extent: Extent) -> bool:
    blocks = shapes[OFT_BLOCKS]
    has_blocks = len(blocks) == 3 and blocks[1] == blocks[2] > 0 and blocks[0] * blocks[1] == extent.rows
    return has_blocks and math.prod(shapes.get(RESCALE, (extent.rows,))) == extent.rows


def block_size_of(numbers: int) -> int:
    """n of the n (n - 1) / 2 numbers above a diagonal; 0 if no n has so many."""
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    return size if numbers and size * (size - 1) // 2 == numbers else 0


def _fits_oft_inputs(shapes: Shapes, extent: Extent) -> bool:
    vectors = shapes[OFT_R]
    size = block_size_of(vectors[1]) if len(vectors) == 2 else 0
    if size < 2 or extent.width % size:
        return False
    return vectors[0] in (1, extent.width // size) and math.prod(shapes.get(OFT_SCALED, ())) == 1


def _fits_whole(shapes: Shapes, extent: Extent) -> bool:
    wanted = (extent.rows,) if extent.size.is_vector else (extent.rows, extent.width)
    return flat(shapes[DIFF]) == wanted


def _no_rank(shapes: Shapes) -> None:
    return None


def _size(shapes: Shapes, role: str, dim: int) -> int | None:
    """One dimension of a tensor that counts as a matrix."""
    shape = flat(shapes.get(role, ()))
    return shape[dim] if dim < len(shape) else None


def _made_lora(shapes: Shapes) -> Made:
    return _size(shapes, UP, 0), _size(shapes, DOWN, 1)


def _made_tucker_lora(shapes: Shapes) -> Made:
    columns = _size(shapes, DOWN, 1)
    return _size(shapes, UP, 0), None if columns is None else columns * math.prod(shapes[MID][2:])


def _made_loha(shapes: Shapes) -> Made:
    if HADA_CORES[0] not in shapes:
        return _size(shapes, HADA[0], 0), _size(shapes, HADA[1], 1)
    columns = _size(shapes, HADA[1], 1)
    return _size(shapes, HADA[0], 1), None if columns is None else columns * math.prod(shapes[HADA_CORES[0]][2:])


def _made_lokr(shapes: Shapes) -> Made:
    sides = _sides(shapes)
    return (sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]) if sides else (None, None)


def _made_oft_outputs(shapes: Shapes) -> Made:
    blocks = shapes[OFT_BLOCKS]
    return blocks[0] * blocks[1] if len(blocks) == 3 else None, None


def _made_oft_inputs(shapes: Shapes) -> Made:
    vectors = shapes[OFT_R]
    size = block_size_of(vectors[1]) if len(vectors) == 2 else 0
    return None, vectors[0] * size if size and vectors[0] > 1 else None


def _made_whole(shapes: Shapes) -> Made:
    return _size(shapes, DIFF, 0), _size(shapes, DIFF, 1)


METHODS: Mapping[str, Method] = {
    "LoRA": Method(frozenset((DOWN, UP)), frozenset(), _first(DOWN), _fits_lora, _made_lora),
    "LoRA with a Tucker core": Method(
        frozenset((DOWN, MID, UP)), frozenset(), _first(DOWN), _fits_tucker_lora, _made_tucker_lora
    ),
    "LoHa": Method(frozenset(HADA), frozenset(HADA_CORES), _first(HADA[1]), _fits_loha, _made_loha),
    "LoKr": Method(frozenset(), frozenset(LOKR), _lokr_rank, _fits_lokr, _made_lokr, _has_both_sides),
    "OFT of outputs": Method(
        frozenset((OFT_BLOCKS,)), frozenset((RESCALE,)), _no_rank, _fits_oft_outputs, _made_oft_outputs
    ),
    "OFT of inputs": Method(
        frozenset((OFT_R,)), frozenset((OFT_SCALED,)), _no_rank, _fits_oft_inputs, _made_oft_inputs
    ),
    "whole difference": Method(frozenset((DIFF,)), frozenset(), _no_rank, _fits_whole, _made_whole),
}
"""The methods that are applied, by name. DoRA goes around any of them."""

BESIDE = frozenset((ALPHA, BIAS_DIFF, UP_BIAS, MAGNITUDE))
"""Roles that stand beside a method's own."""


def methods_of(roles: Sequence[str]) -> list[str]:
    """The names of the methods that a module's roles make up; empty if some are missing or belong to none."""
    left = set(roles) - BESIDE
    found: list[str] = []
    for name, method in METHODS.items():
        own = left & (method.needs | method.takes)
        is_tucker_rest = name == "LoRA" and MID in left
        if own and method.needs <= left and method.is_whole(frozenset(own)) and not is_tucker_rest:
            found.append(name)
            left -= own
    return found if not left else []


def fits_magnitude(shape: Shape, extent: Extent) -> bool:
    """One length for each row or for each column."""
    return math.prod(shape) in (extent.rows, extent.width) and sum(size > 1 for size in shape) <= 1

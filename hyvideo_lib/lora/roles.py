"""What the tensors of a module must be for each method, by their roles and shapes, and the changes made of them.

All that can be wrong with shapes is found from the header; making a change reads the tensors, which are views of the
mapped file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checkpoint.lora_layers import LayerSize
from ..checkpoint.lora_tensors import (
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
from .change import Change, Whole
from .dora import Decomposed
from .hadamard import Hadamard, untucked
from .kronecker import Kronecker
from .oft import TurnedInputs, TurnedOutputs, block_size_of
from .update import LowRank

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Tensors = Mapping[str, Tensor]


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
    matrix of that extent. make: the change, from tensors and the scale.
    """

    needs: frozenset[str]
    takes: frozenset[str]
    rank: Callable[[Shapes], int | None]
    fits: Callable[[Shapes, Extent], bool]
    make: Callable[[Tensors, Extent, float], Change]
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


def _make_lora(tensors: Tensors, extent: Extent, scale: float) -> LowRank:
    return LowRank(tensors[DOWN].flatten(1), tensors[UP].flatten(1), scale)


def _fits_tucker(core: Shape, up: Shape, down: Shape, extent_rows: int, width: int) -> bool:
    """core [R, R, kernel...]; up [R, rows], down [R, in]."""
    if len(core) < 2 or not core[0] or len(flat(up)) < 2 or len(flat(down)) < 2:
        return False
    kernel = math.prod(core[2:])
    return core[0] == core[1] and flat(up) == (core[0], extent_rows) and flat(down) == (core[0], width // kernel)


def _fits_tucker_lora(shapes: Shapes, extent: Extent) -> bool:
    up = flat(shapes[UP])
    return len(up) == 2 and _fits_tucker(shapes[MID], up[::-1], shapes[DOWN], extent.rows, extent.width)


def _make_tucker_lora(tensors: Tensors, extent: Extent, scale: float) -> LowRank:
    up = tensors[UP].flatten(1)
    _, down = untucked(tensors[MID], up.mT, tensors[DOWN].flatten(1))
    return LowRank(down, up, scale)


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


def _make_loha(tensors: Tensors, extent: Extent, scale: float) -> Hadamard:
    def side(core: str, up: str, down: str) -> tuple[Tensor, Tensor]:
        factors = tensors[up].flatten(1), tensors[down].flatten(1)
        return untucked(tensors[core], *factors) if core in tensors else factors

    first, second = side(HADA_CORES[0], HADA[0], HADA[1]), side(HADA_CORES[1], HADA[2], HADA[3])
    return Hadamard(first[0], first[1], second[0], second[1], scale)


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


def _make_lokr(tensors: Tensors, extent: Extent, scale: float) -> Kronecker:
    sides: list[Tensor] = []
    for number in "12":
        whole, up, down = (tensors.get(f"lokr_w{number}{end}") for end in ("", "_a", "_b"))
        core = tensors.get(f"lokr_t{number}")
        if whole is not None:
            sides.append(whole.flatten(1))
            continue
        if up is None or down is None:
            raise TypeError("a side of LoKr is a matrix or a product of two")
        if core is not None:
            left, right = untucked(core, up.flatten(1), down.flatten(1))
        else:
            left, right = up.flatten(1).float(), down.flatten(1).float()
        sides.append(left @ right)
    return Kronecker(sides[0], sides[1], scale)


def _fits_oft_outputs(shapes: Shapes, extent: Extent) -> bool:
    blocks = shapes[OFT_BLOCKS]
    has_blocks = len(blocks) == 3 and blocks[1] == blocks[2] > 0 and blocks[0] * blocks[1] == extent.rows
    return has_blocks and math.prod(shapes.get(RESCALE, (extent.rows,))) == extent.rows


def _make_oft_outputs(tensors: Tensors, extent: Extent, scale: float) -> TurnedOutputs:
    """scale: alpha itself, which LyCORIS and kohya take as a bound for each row."""
    rescale = tensors[RESCALE].reshape(-1, 1) if RESCALE in tensors else None
    return TurnedOutputs(tensors[OFT_BLOCKS], extent.width, scale * extent.rows, rescale)


def _fits_oft_inputs(shapes: Shapes, extent: Extent) -> bool:
    vectors = shapes[OFT_R]
    size = block_size_of(vectors[1]) if len(vectors) == 2 else 0
    if size < 2 or extent.width % size:
        return False
    return vectors[0] in (1, extent.width // size) and math.prod(shapes.get(OFT_SCALED, ())) == 1


def _make_oft_inputs(tensors: Tensors, extent: Extent, scale: float) -> TurnedInputs:
    is_scaled = OFT_SCALED in tensors and bool(tensors[OFT_SCALED].reshape(()))
    return TurnedInputs(tensors[OFT_R], extent.rows, extent.width, is_scaled)


def _fits_whole(shapes: Shapes, extent: Extent) -> bool:
    wanted = (extent.rows,) if extent.size.is_vector else (extent.rows, extent.width)
    return flat(shapes[DIFF]) == wanted


_LOKR = frozenset(LOKR)
METHODS: Mapping[str, Method] = {
    "LoRA": Method(frozenset((DOWN, UP)), frozenset(), _first(DOWN), _fits_lora, _make_lora),
    "LoRA with a Tucker core": Method(
        frozenset((DOWN, MID, UP)), frozenset(), _first(DOWN), _fits_tucker_lora, _make_tucker_lora
    ),
    "LoHa": Method(frozenset(HADA), frozenset(HADA_CORES), _first(HADA[1]), _fits_loha, _make_loha),
    "LoKr": Method(frozenset(), _LOKR, _lokr_rank, _fits_lokr, _make_lokr, _has_both_sides),
    "OFT of outputs": Method(
        frozenset((OFT_BLOCKS,)), frozenset((RESCALE,)), lambda shapes: None, _fits_oft_outputs, _make_oft_outputs
    ),
    "OFT of inputs": Method(
        frozenset((OFT_R,)), frozenset((OFT_SCALED,)), lambda shapes: None, _fits_oft_inputs, _make_oft_inputs
    ),
    "whole difference": Method(
        frozenset((DIFF,)),
        frozenset(),
        lambda shapes: None,
        _fits_whole,
        lambda tensors, _, scale: Whole(tensors[DIFF]),
    ),
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


def decomposed(inner: Change, magnitude: Tensor) -> Decomposed:
    """DoRA around a change. [N] are rows' lengths, [1, N, ...] columns', but for PEFT's convolutions."""
    rows, _ = inner.shape
    if magnitude.ndim == 1 or magnitude.shape[0] != 1 or magnitude.numel() == 1:
        return Decomposed(inner, magnitude.reshape(-1, 1))
    is_rows = magnitude.ndim == 5 and magnitude.numel() == rows != inner.shape[1]
    return Decomposed(inner, magnitude.reshape(-1, 1) if is_rows else magnitude.reshape(1, -1))

"""A LoRA's modules held to the layers of HunyuanVideo's transformer: which they are, and whether their sizes fit.

The loader compares a LoRA with the transformer that it is for. Here that one is not known, so a LoRA fits if there is
a width of the model at which all of its matrices fit at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType

from torch import nn

from ..transformer import TransformerConfig
from .blueprint import build_meta_transformer
from .header import TensorInfo
from .keymaps import part_rows, their_names

RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)
LAYOUTS = ("tencent", "comfyui", "diffusers")
DOWN, UP, DIFF, BIAS_DIFF, ALPHA = "down", "up", "diff", "diff_b", "alpha"
FLOATS = frozenset(("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"))
INTEGERS = frozenset(("int64", "int32", "int16", "int8", "uint8"))  # an alpha may be one
PATCH = "img_in.proj"


@dataclass(frozen=True)
class Rows:
    """The rows start..stop of a layer of the released transformer, which one name speaks of."""

    layer: str
    start: int
    stop: int
    columns: int


@dataclass(frozen=True)
class LoraModule:
    """The tensors of one module that HunyuanVideo has, by role."""

    path: str
    rows: Rows
    tensors: Mapping[str, TensorInfo]


def flat(path: str) -> str:
    """A module's path with underscores for dots, as half of the trainers write it."""
    return path.replace(".", "_")


@lru_cache(maxsize=1)
def known_modules() -> Mapping[str, Rows]:
    """Every name, in each layout and flat, of a layer that a LoRA can change, and what it speaks of."""
    found: dict[str, Rows] = {}
    layers = [
        (name, layer.weight.shape[0], layer.weight[0].numel())
        for name, layer in build_meta_transformer(RELEASED).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv3d)
    ]
    for layout in LAYOUTS:
        for layer, rows, columns in layers:
            sources = their_names("transformer", layout, layer)
            start = 0
            for source, count in zip(sources, part_rows(rows, len(sources), RELEASED.hidden_size), strict=True):
                found.setdefault(flat(source.name), Rows(layer, start, start + count, columns))
                start += count
    return MappingProxyType(found)


def widths(modules: Iterable[LoraModule]) -> Counter[int]:
    """How wide the model is, by each size of the LoRA that tells it; the commonest answer is the likeliest."""
    counts = Counter[int]()
    for module in modules:
        for role, wanted in _wanted(module, RELEASED.hidden_size).items():
            found = _matrix(module.tensors[role].shape) if role in module.tensors else ()
            for size, released in zip(found, wanted, strict=False):
                if released and released % RELEASED.hidden_size == 0:
                    counts[size * RELEASED.hidden_size // released] += 1
    return counts


def misfit(modules: Iterable[LoraModule]) -> str:
    """The first thing in a LoRA that fits no HunyuanVideo of whatever width, in sentences; empty if all fits."""
    modules = list(modules)
    common = widths(modules).most_common(1)
    width = common[0][0] if common else RELEASED.hidden_size
    for module in modules:
        if complaint := _half(module) or _stored(module) or _shaped(module, width):
            return complaint
    return _overlap(modules)


def _wanted(module: LoraModule, width: int) -> dict[str, tuple[int | None, ...]]:
    """The shapes that the tensors of a module have in a model of some width. None: any size; 0: the rank."""

    def scaled(size: int) -> int | None:
        if width == RELEASED.hidden_size:
            return size
        return size * width // RELEASED.hidden_size if size % RELEASED.hidden_size == 0 else None

    out = scaled(module.rows.stop - module.rows.start)
    into = None if module.rows.layer == PATCH else scaled(module.rows.columns)  # forms of the model take more channels
    return {DOWN: (0, into), UP: (out, 0), DIFF: (out, into), BIAS_DIFF: (out,)}


def _half(module: LoraModule) -> str:
    there, missing = (DOWN, UP) if DOWN in module.tensors else (UP, DOWN)
    if there not in module.tensors or missing in module.tensors:
        return ""
    return f"It has the {there} matrix of {module.path} but not its {missing} matrix. Download or save it again."


def _stored(module: LoraModule) -> str:
    for role, info in module.tensors.items():
        if info.dtype not in (FLOATS | INTEGERS if role == ALPHA else FLOATS):
            return f"It stores {info.name} as {info.dtype}, but a LoRA holds floating-point numbers."
    return ""


def _shaped(module: LoraModule, width: int) -> str:
    rank = next(iter(module.tensors[DOWN].shape), 0) if DOWN in module.tensors else 0
    for role, wanted in _wanted(module, width).items():
        if role not in module.tensors:
            continue
        info = module.tensors[role]
        sizes = [rank if size == 0 else size for size in wanted]
        found = _matrix(info.shape)
        fits = len(found) == len(sizes) and all(size in (None, have) for size, have in zip(sizes, found, strict=True))
        if not fits or not info.numel:
            accepted = " x ".join("any" if size is None else str(size) for size in sizes)
            return (
                f"{info.name} is {' x '.join(map(str, info.shape)) or 'a number'}, but {module.rows.layer} needs "
                f"{accepted}: the LoRA was made for another model or variant."
            )
    if ALPHA in module.tensors and module.tensors[ALPHA].numel != 1:
        return f"{module.tensors[ALPHA].name} is no single number. Download or save it again."
    return ""


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a matrix, if the dimensions behind its second one are counted into that."""
    return shape if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _overlap(modules: list[LoraModule]) -> str:
    """A complaint if two modules speak of the same rows: the effect would double."""
    places = sorted(modules, key=lambda module: (module.rows.layer, module.rows.start))
    for first, second in pairwise(places):
        if first.rows.layer == second.rows.layer and second.rows.start < first.rows.stop:
            return (
                f"It changes {first.rows.layer} twice, as {first.path!r} and as {second.path!r}. It holds one LoRA in "
                "two layouts, or two LoRAs; use a file with one."
            )
    return ""

"""Other layouts' names and Tencent's, both ways: renames, rows kept in several tensors, halves that changed places.

The rules are in `keymap_tables`. What follows from them holds for tensors (`....img_attn_qkv.weight`), for the numbers
that belong to a quantised weight (`....img_attn_qkv.scale_weight`) and for modules (`....img_attn_qkv`). A layout
without rules has Tencent's names already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from .keymap_tables import SQUEEZE, SWAP_HALVES, TABLES, Rule
from .read import Header, TensorInfo

COMPANIONS = frozenset(
    ("fp8_scale", "scale_weight", "scale_input", "weight_scale", "weight_scale_2", "input_scale", "comfy_quant")
)
"""Last words of names of tensors that say how the weight beside them was quantised."""
MARKERS = frozenset(("scaled_fp8", "fp8_scale"))
"""Whole names that say it of a file."""

T = TypeVar("T")

_LEAVES = COMPANIONS | {"weight", "bias", "scale"}
_INDEX = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,3})(?=\.|$)", re.ASCII)
_CHOICES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))  # which numbers in a path may be block indices


@dataclass(frozen=True)
class Source:
    """Where a Tencent tensor or module, or part `part` of its `parts` along dimension 0, is found.

    operation: how it differs otherwise, SWAP_HALVES, SQUEEZE or empty.
    """

    name: str
    part: int = 0
    parts: int = 1
    operation: str = ""


@dataclass(frozen=True)
class Translated:
    """A header in Tencent's names, and for each of them its sources in the order of their parts.

    header: weights and biases of several parts have the shape and the bytes of the whole (`start` and `end` are then no
    offsets), the numbers beside such a weight the shape that they have for each part.
    leftover: names that no rule knows, and parts that do not make a whole.
    """

    header: Header
    sources: Mapping[str, tuple[Source, ...]]
    leftover: tuple[str, ...]


def to_tencent(header: Header, kind: str, layout: str) -> Translated:
    """Translate a header without prefix. Raises nothing: what cannot be translated is left over."""
    if (kind, layout) not in TABLES:
        return Translated(header, MappingProxyType({name: (Source(name),) for name in header.tensors}), ())
    found: dict[str, dict[int, Source]] = {}
    leftover: list[str] = []
    for name in header.tensors:
        hit = (name, Source(name)) if name in MARKERS else our_name(kind, layout, name)
        if hit is None or hit[1].part in found.get(hit[0], {}):
            leftover.append(name)
            continue
        ours, source = hit
        found.setdefault(ours, {})[source.part] = source
    tensors: dict[str, TensorInfo] = {}
    sources: dict[str, tuple[Source, ...]] = {}
    for ours, parts in found.items():
        ordered = tuple(parts[part] for part in sorted(parts))
        infos = [header.tensors[source.name] for source in ordered]
        if _leaf(ours) in COMPANIONS or _is_whole(ordered, infos):
            tensors[ours], sources[ours] = _joined(ours, ordered, infos), ordered
        else:
            leftover += [source.name for source in ordered]
    return Translated(replace(header, tensors=MappingProxyType(tensors)), MappingProxyType(sources), tuple(leftover))


def our_name(kind: str, layout: str, name: str) -> tuple[str, Source] | None:
    """Tencent's name for another layout's tensor or module, with `name` as its source; None if no rule knows it."""
    if (kind, layout) not in TABLES:
        return name, Source(name)
    path, leaf = _split(name)
    hit = _look_up(_their_index(kind, layout), path)
    if hit is None:
        return None
    (rule, part), indices = hit
    our_leaf = "weight" if leaf == rule.their_weight else leaf
    source = Source(name, part, len(rule.theirs), _operation(rule.operation, our_leaf))
    return _dotted(rule.ours.format(*indices), our_leaf), source


def their_names(kind: str, layout: str, name: str) -> tuple[Source, ...]:
    """What a Tencent tensor or module is called in another layout, part by part; empty if no rule knows it."""
    if (kind, layout) not in TABLES:
        return (Source(name),)
    path, leaf = _split(name)
    hit = _look_up(_our_index(kind, layout), path)
    if hit is None:
        return ()
    rule, indices = hit
    their_leaf = rule.their_weight if leaf == "weight" else leaf
    operation = _operation(rule.operation, leaf)
    return tuple(
        Source(_dotted(theirs.format(*indices), their_leaf), part, len(rule.theirs), operation)
        for part, theirs in enumerate(rule.theirs)
    )


def part_rows(rows: int, parts: int, hidden_size: int) -> tuple[int, ...]:
    """Rows of each part of a weight: the first ones (q, k, v) are `hidden_size` high, the last has the rest."""
    if parts == 1:
        return (rows,)
    return (*[hidden_size] * (parts - 1), rows - hidden_size * (parts - 1))


def apply_operation(operation: str, tensor: Tensor) -> Tensor:
    """Their tensor as ours. SQUEEZE gives a view, SWAP_HALVES a copy; one number for all rows stays as it is."""
    if operation == SWAP_HALVES and tensor.ndim and tensor.shape[0] > 1:
        return torch.cat(tensor.chunk(2)[::-1])
    return tensor.reshape(tensor.shape[:2]) if operation == SQUEEZE else tensor


def undo_operation(operation: str, tensor: Tensor) -> Tensor:
    """Our tensor as theirs."""
    return tensor.reshape(*tensor.shape, 1, 1, 1) if operation == SQUEEZE else apply_operation(operation, tensor)


@cache
def _their_index(kind: str, layout: str) -> dict[str, tuple[Rule, int]]:
    return {path: (rule, part) for rule in TABLES[kind, layout] for part, path in enumerate(rule.theirs)}


@cache
def _our_index(kind: str, layout: str) -> dict[str, Rule]:
    return {rule.ours: rule for rule in TABLES[kind, layout]}


def _look_up(index: Mapping[str, T], path: str) -> tuple[T, tuple[str, ...]] | None:
    """The entry whose template the path fits, and the block indices that fill it."""
    if "{" in path:
        return None  # a template itself is no name
    numbers = list(_INDEX.finditer(path))[:2]
    for choice in _CHOICES:
        if any(place >= len(numbers) for place in choice):
            continue
        chosen = [numbers[place] for place in choice]
        cuts = [0, *chain.from_iterable(match.span() for match in chosen), len(path)]
        template = "{}".join(path[begin:end] for begin, end in zip(cuts[::2], cuts[1::2], strict=True))
        if template in index:
            return index[template], tuple(match[0] for match in chosen)
    return None


def _split(name: str) -> tuple[str, str]:
    """(module, last word) of a tensor's name; (module, "") of a module's."""
    path, _, leaf = name.rpartition(".")
    return (path, leaf) if path and leaf in _LEAVES else (name, "")


def _leaf(name: str) -> str:
    return _split(name)[1]


def _dotted(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if leaf else path


def _operation(operation: str, leaf: str) -> str:
    """What of a module's operation applies to one of its tensors; to the module itself, all of it."""
    if operation == SQUEEZE:
        return operation if leaf in ("weight", "") else ""
    return "" if leaf == "comfy_quant" else operation


def _is_whole(sources: tuple[Source, ...], infos: list[TensorInfo]) -> bool:
    """Whether all parts are there, and of sizes that belong together."""
    if len(sources) != sources[0].parts:
        return False
    is_even = all(info.shape and info.shape[1:] == infos[0].shape[1:] for info in infos)
    return len(infos) == 1 or (is_even and len({info.shape[0] for info in infos[:3]}) == 1)


def _joined(name: str, sources: tuple[Source, ...], infos: list[TensorInfo]) -> TensorInfo:
    """The whole as the header would describe it."""
    first = infos[0]
    shape = first.shape
    if sources[0].operation == SQUEEZE and math.prod(shape[2:]) == 1:
        shape = shape[:2]
    if len(infos) == 1 or _leaf(name) in COMPANIONS:
        return replace(first, shape=shape)
    end = first.start + sum(info.num_bytes for info in infos)
    return replace(first, shape=(sum(info.shape[0] for info in infos), *shape[1:]), end=end)

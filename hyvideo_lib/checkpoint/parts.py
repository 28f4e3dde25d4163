"""The models in one file: what belongs to each, under the names that the table of known files has.

Most files hold one; an all-in-one checkpoint holds a transformer, a VAE and text encoders, each behind a prefix. Every
TensorInfo keeps the name that the file gives its tensor, so that it is found again and can be named to people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..quant.comfy_quant import METADATA_KEY as QUANTIZATION
from .header import Header, TensorInfo
from .layout import Layout, Match, all_matches
from .sizes import METADATA_KEY as SIZES
from .wrappers import find_twins, prefix_before, strip_wrappers

MAX_ENTRY = 10_000_000  # characters of a metadata entry that is looked at for the layers of one model


@dataclass(frozen=True)
class Part:
    """One model of a file. match: with the prefix that the file's names have, words of wrappers included.

    header: its tensors under bare names. twins: pairs of the file's names that are one bare name. beside: the file's
    tensors that belong to no model. is_usual: the prefix is one that such files are known to have.
    """

    match: Match
    header: Header
    twins: tuple[tuple[str, str], ...]
    beside: Mapping[str, TensorInfo]
    is_usual: bool

    @property
    def with_beside(self) -> Header:
        """The header, with what belongs to no model under the file's names: marks of the whole file are among it."""
        return replace(self.header, tensors=MappingProxyType({**self.beside, **self.header.tensors}))


def find_parts(header: Header, rows: Iterable[Layout]) -> tuple[Part, ...]:
    """Every model of a file, in the order of the table's rows."""
    bare = strip_wrappers(header.tensors)
    tensors: dict[str, TensorInfo] = {}
    for name, stripped in bare.items():
        tensors.setdefault(stripped, header.tensors[name])
    twins: dict[str, tuple[str, str]] = {bare[pair[0]]: pair for pair in find_twins(bare)}
    matches = all_matches(replace(header, tensors=MappingProxyType(tensors)), rows)
    own = {match.prefix: _own_of(match, _names_of(match, matches, tensors), tensors) for match in matches}
    taken = {name for _, names in own.values() for name in names}
    beside = MappingProxyType({info.name: info for name, info in tensors.items() if name not in taken})

    def part(match: Match) -> Part:
        prefix = match.prefix
        in_file, names = own[prefix]
        mine = {name.removeprefix(prefix): tensors[name] for name in names}
        metadata = _metadata_of(match, matches, header.metadata)
        return Part(
            replace(match, prefix=in_file),
            replace(header, tensors=MappingProxyType(mine), metadata=metadata),
            tuple(twins[name] for name in names if name in twins),
            beside,
            prefix in match.layout.prefixes,
        )

    return tuple(part(match) for match in matches)


def _names_of(match: Match, matches: Iterable[Match], tensors: Iterable[str]) -> list[str]:
    """Names behind a model's prefix, without those behind the prefix of another one that begins with it."""
    prefix = match.prefix
    inner = tuple(
        other.prefix for other in matches if other.prefix != prefix and other.prefix.startswith(prefix) and other.prefix
    )
    return [name for name in tensors if name.startswith(prefix) and not name.startswith(inner)]


def _own_of(match: Match, names: list[str], tensors: Mapping[str, TensorInfo]) -> tuple[str, list[str]]:
    """The prefix that the file writes, of a tensor that the row was told by, and the names that are the model's.

    Where wrappers' words are a part of the prefix, a name without them is another's, unless it is of a module that has
    such names too: wrappers may stand around some layers only.
    """
    length = len(match.prefix)
    beginnings = tuple(match.prefix + beginning for marker in match.layout.markers for beginning in marker.split("|"))
    told = next(name for name in names if name.startswith(beginnings))
    prefix = prefix_before(tensors[told].name, told[length:])
    if prefix == match.prefix:
        return prefix, names
    inside = {name for name in names if tensors[name].name.startswith(prefix)}
    modules = {name[length:].partition(".")[0] for name in inside}
    return prefix, [name for name in names if name in inside or name[length:].partition(".")[0] in modules]


def _metadata_of(match: Match, matches: list[Match], metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The file's metadata, those that speak of single models reduced to this one."""
    if len(matches) < 2:
        return metadata
    changed: dict[str, str | None] = {}
    layers = _table(metadata.get(QUANTIZATION))
    if isinstance(layers.get("layers"), dict):
        others = tuple(other.prefix for other in matches if other is not match and other.prefix)
        inner = tuple(other for other in others if len(other) > len(match.prefix) or not match.prefix.startswith(other))
        kept = {name: entry for name, entry in layers["layers"].items() if not name.startswith(inner)}
        changed[QUANTIZATION] = json.dumps({**layers, "layers": kept}) if kept else None
    sizes = _table(metadata.get(SIZES))
    if isinstance(sizes.get(match.layout.kind), dict):
        changed[SIZES] = json.dumps(sizes[match.layout.kind])
    return MappingProxyType(
        {name: text for name, text in {**metadata, **changed}.items() if text is not None} if changed else metadata
    )


def _table(text: str | None) -> Mapping[str, dict[str, object]]:
    """A table in JSON; empty for anything else."""
    try:
        found = json.loads(text) if text and len(text) <= MAX_ENTRY else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

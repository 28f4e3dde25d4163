"""Known layers behind unknown words: which layer each module of a LoRA file is, whatever stands around its name.

Trainers and wrappers put words before a name and into it. Those that only wrap are dropped wherever they stand, and so
is every word that all modules of the file share and that no layer has. What is left must end in a layer's name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..transformer import TransformerConfig
from .lora_layers import Place, Words, every_name

WRAPPERS: tuple[Words, ...] = (
    ("fsdp", "wrapped", "module"),
    ("checkpoint", "wrapped", "module"),
    ("orig", "mod"),
    ("base", "layer"),
    ("module",),
)
"""Words that PyTorch's and PEFT's wrappers put into names. No layer has any of them as a word."""
_WORD = re.compile(r"[^._]+")
_BLOCKS = ("double_blocks", "single_blocks", "transformer_blocks")
"""In the names of the layers of blocks, in every layout."""
_INSIDE = ("double_blocks.", "single_blocks.")
_PART_OF_A_NAME = "single"
"""Before `transformer_blocks` it is no prefix, but the name of other blocks."""


@dataclass(frozen=True)
class Hit:
    """A module's layer. prefix: what stands before the name in the file; name: the rest, with its layout's dots."""

    place: Place
    prefix: str
    name: str


@dataclass(frozen=True)
class _Found:
    hit: Hit
    before: Words


def match_modules(stems: Iterable[str], config: TransformerConfig) -> dict[str, Hit]:
    """The layers of the modules of a file, by the modules' names; those that are none are left out.

    Outside of the blocks names are short (`proj_out`), so there only what stands before the blocks' names may stand
    before them, or, in a file without blocks, what stands before all of them.
    """
    stems = list(dict.fromkeys(stems))
    table = every_name(config)
    dropped = _shared_words(stems, table)
    found = {stem: hit for stem in stems if (hit := _look_up(stem, table, dropped)) is not None}
    inside = {stem for stem in found if found[stem].hit.place.layer.startswith(_INSIDE)}
    accepted = {found[stem].before for stem in inside} or _only({each.before for each in found.values()})
    return {stem: each.hit for stem, each in found.items() if stem in inside or each.before in accepted}


def _only(prefixes: set[Words]) -> set[Words]:
    """Those of a file without blocks: one for all, without a number, which would be of a block of another model."""
    is_one = len(prefixes) == 1 and not any(word.isdigit() for word in next(iter(prefixes)))
    return prefixes if is_one else set()


def _shared_words(stems: Iterable[str], table: Mapping[Words, object]) -> frozenset[str]:
    """Words that all modules of blocks have, and no layer of the model."""
    known = {word for words in table for word in words}
    counts: Counter[str] = Counter()
    total = 0
    for stem in stems:
        if any(mark in stem for mark in _BLOCKS):
            total += 1
            counts.update({word for word in _WORD.findall(stem) if word not in known and not word.isdigit()})
    return frozenset(word for word, count in counts.items() if count == total)


def _look_up(stem: str, table: Mapping[Words, Mapping[str, Place]], dropped: frozenset[str]) -> _Found | None:
    """The layer with the longest name that the stem ends in."""
    words = [(hit[0], hit.start()) for hit in _WORD.finditer(stem)]
    kept = [(word, start) for word, start in _without_wrappers(words) if word not in dropped]
    for place, (_, start) in enumerate(kept):
        known = table.get(tuple(word for word, _ in kept[place:]))
        if known is None:
            continue
        before = tuple(word for word, _ in kept[:place])
        if before[-1:] == (_PART_OF_A_NAME,):
            return None
        own = stem[start:]
        name, layer_place = next(((name, known[name]) for name in known if name == own), next(iter(known.items())))
        return _Found(Hit(layer_place, stem[:start], own if "." in own else name), before)
    return None


def _without_wrappers(words: list[tuple[str, int]]) -> list[tuple[str, int]]:
    kept: list[tuple[str, int]] = []
    place = 0
    while place < len(words):
        for wrapper in WRAPPERS:
            if tuple(word for word, _ in words[place : place + len(wrapper)]) == wrapper:
                place += len(wrapper)
                break
        else:
            kept.append(words[place])
            place += 1
    return kept

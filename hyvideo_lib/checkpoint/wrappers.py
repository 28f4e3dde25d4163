"""Words that training programs put into the names of tensors, taken off again; names here are words between dots.

A program that wraps a layer (to compile it, to share it over cards, to save its memory, to add a LoRA) keeps the layer
under a word of its own, so that word stands in the name of every tensor inside, wherever the layer is. What else
stands in front of a model's names is a prefix: any words that lead up to names which are known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

WRAPPER_WORDS = frozenset(
    (
        *("module", "_module", "_orig_mod", "orig_mod", "_forward_module", "_compiled_module", "compiled_module"),
        *("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_wrapped_module", "wrapped_module"),
        *("wrapped_model", "_wrapped_model", "wrapped", "_wrapped", "base_layer", "orig_layer", "original_layer"),
        *("inner", "_inner", "inner_module", "inner_model", "inner_layer", "_original_module", "original_module"),
    )
)
"""PyTorch's (data parallel, FSDP, compile, checkpointing), DeepSpeed's, Lightning's, PEFT's, and plain ones."""
MAX_PLACES = 64
"""Different prefixes before one beginning that are looked at."""
MAX_HITS = 4_000
"""Names with one beginning that are looked at; a layer has a few tensors."""
_HAS_WRAPPER = re.compile(rf"(?:^|\.)(?:{'|'.join(sorted(WRAPPER_WORDS))})\.")


def strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """For each name the name without the words of wrappers. The last word of a name, a tensor's own, always stays.

    Two names can become one: see `find_twins`.
    """
    return {name: _strip(name) for name in names}


def find_twins(bare: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Pairs of names that `strip_wrappers` made the same, in the order of the names."""
    first: dict[str, str] = {}
    twins = []
    for name, stripped in bare.items():
        if first.setdefault(stripped, name) != name:
            twins.append((first[stripped], name))
    return tuple(twins)


def wrappers_in(names: Iterable[str]) -> tuple[str, ...]:
    """Words of wrappers that stand in names, sorted."""
    found: set[str] = set()
    for name in names:
        if _HAS_WRAPPER.search(name):
            found |= WRAPPER_WORDS.intersection(name.split(".")[:-1])
    return tuple(sorted(found))


def prefix_before(name: str, rest: str) -> str:
    """What stands in a name before the words of `rest`, among which wrappers' words may stand; empty for nothing."""
    words, wanted = name.split("."), rest.split(".")
    place = len(words)
    while wanted and place:
        place -= 1
        if words[place] == wanted[-1]:
            wanted.pop()
        elif words[place] not in WRAPPER_WORDS:
            break
    return "".join(f"{word}." for word in words[:place])


class Beginnings:
    """Names to be asked what stands before a beginning of known names. As fast as a search in all of their text."""

    def __init__(self, names: Sequence[str]) -> None:
        self._text = "\n" + "\n".join(names) + "\n"
        self._known: dict[str, tuple[str, ...]] = {}

    def prefixes(self, marker: str) -> tuple[str, ...]:
        """Prefixes behind which one of the beginnings "a|b" stands, the shortest first."""
        if marker not in self._known:
            found = {prefix for beginning in marker.split("|") for prefix in self._before(beginning)}
            self._known[marker] = tuple(sorted(found, key=lambda prefix: (len(prefix), prefix)))[:MAX_PLACES]
        return self._known[marker]

    def _before(self, beginning: str) -> Iterator[str]:
        text, place = self._text, 0
        for _ in range(MAX_HITS):
            place = text.find(beginning, place)
            if place < 0:
                return
            start = text.rfind("\n", 0, place) + 1
            if place == start or text[place - 1] == ".":
                yield text[start:place]
            place += len(beginning)


def _strip(name: str) -> str:
    if not _HAS_WRAPPER.search(name):
        return name
    *path, leaf = name.split(".")
    return ".".join([*(word for word in path if word not in WRAPPER_WORDS), leaf])

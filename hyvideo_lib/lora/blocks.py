"""Which blocks a LoRA acts on: "double 0-9, single" and the like."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InvalidSetting

_ENTRY = re.compile(r"(double|single|other)((?: [0-9]{1,4}(?:-[0-9]{1,4})?)*)", re.ASCII)
_BLOCK = re.compile(r"(double|single)_blocks\.([0-9]+)\.", re.ASCII)
_HELP = (
    'Write "double", "single" or "other" (all layers outside these blocks), with blocks counted from 0 where not all '
    'are meant, and commas between: "double 0-9, single" or "single 20-39 12".'
)


@dataclass(frozen=True)
class BlockChoice:
    """A choice of blocks. `double`, `single`: their indices, None for all of them; other: the layers outside blocks."""

    double: frozenset[int] | None = None
    single: frozenset[int] | None = None
    other: bool = True

    def includes(self, layer: str) -> bool:
        """Whether a layer of the transformer, given by its path, is chosen."""
        match = _BLOCK.match(layer)
        if match is None:
            return self.other
        chosen: frozenset[int] | None = getattr(self, match[1])
        return chosen is None or int(match[2]) in chosen

    def check(self, num_double: int, num_single: int) -> None:
        """Raises InvalidSetting for a block that a transformer of so many does not have."""
        for kind, chosen, count in (("double", self.double, num_double), ("single", self.single, num_single)):
            if chosen and max(chosen) >= count:
                raise InvalidSetting(
                    f"The choice of blocks names {kind} block {max(chosen)}, but this transformer has {count} of them, "
                    f"0 to {count - 1}."
                )


ALL_BLOCKS = BlockChoice()


def parse_blocks(text: str) -> BlockChoice:
    """The choice that a text makes; none, or "all", chooses everything. Raises InvalidSetting."""
    words = " ".join(text.lower().split())
    if words in ("", "all"):
        return ALL_BLOCKS
    chosen: dict[str, frozenset[int] | None] = {"double": frozenset(), "single": frozenset()}
    has_other = False
    for entry in words.split(","):
        match = _ENTRY.fullmatch(entry.strip())
        if match is None or (match[1] == "other" and match[2]):
            raise InvalidSetting(
                f"The choice of blocks is {text[:80]!r}, of which {entry[:40]!r} says nothing. {_HELP}"
            )
        if match[1] == "other":
            has_other = True
            continue
        indices: set[int] = set()
        for span in match[2].split():
            low, _, high = span.partition("-")
            if high and int(high) < int(low):
                raise InvalidSetting(f"The choice of blocks has the range {span}, which ends before it begins. {_HELP}")
            indices |= set(range(int(low), int(high or low) + 1))
        before = chosen[match[1]]
        chosen[match[1]] = None if not indices or before is None else before | indices
    return BlockChoice(chosen["double"], chosen["single"], has_other)

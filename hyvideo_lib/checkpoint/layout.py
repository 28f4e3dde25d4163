"""One known kind of file as a row of data, and the test whether a header is of that kind.

A file is told by what it holds, never by its name. A row names beginnings of tensor names that must occur, those that
must not, and shapes. Looking up a beginning is a binary search, so a header of 200,000 names costs no more than its
sorting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .read import Header
from .wrappers import Beginnings

Shape = tuple[int | None, ...]  # None stands for any size
MAX_MODELS = 16
"""In one file, that are looked for."""


@dataclass(frozen=True)
class Layout:
    """One row. `markers` are beginnings of names, "a|b" is either of two; `prefixes` what may stand before them, the
    likeliest first, although any other may too.

    variant: which model of the kind, where the row alone tells. absent: beginnings that must not occur. shapes: tensors
    and the shapes they must have. refusal: why a file of this row cannot be used, and what to use; empty if it can.
    ignored: beginnings of names (after the prefix) that may stand in the file and are not loaded.
    """

    kind: str
    layout: str
    markers: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)
    variant: str = ""
    absent: tuple[str, ...] = ()
    shapes: tuple[tuple[str, Shape], ...] = ()
    refusal: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """The row that a header fits, and the prefix that its names carry."""

    layout: Layout
    prefix: str

    @property
    def roots(self) -> tuple[str, ...]:
        """Beginnings of names, prefix included, below which all is this model's own, or is said to be ignored."""
        words = {beginning.partition(".")[0] for marker in self.layout.markers for beginning in marker.split("|")}
        return tuple(self.prefix + root for root in (*(f"{word}." for word in words), *self.layout.ignored))


def all_matches(header: Header, rows: Iterable[Layout]) -> list[Match]:
    """Every model of a header: the rows that fit, in their order, each behind a prefix where no row before it does.

    The prefixes of a row are tried first, then whatever stands before its first marker.
    """
    names = sorted(header.tensors)
    beginnings = Beginnings(names)
    matches: list[Match] = []
    for row in rows:
        for prefix in dict.fromkeys((*row.prefixes, *beginnings.prefixes(row.markers[0]))):
            if not _is_taken(prefix, matches) and _fits(row, prefix, names, header):
                matches.append(Match(row, prefix))
                if len(matches) == MAX_MODELS:
                    return matches
    return matches


def _is_taken(prefix: str, matches: Iterable[Match]) -> bool:
    """Whether what stands behind a prefix belongs to a model that was found already."""
    return any(prefix == match.prefix or prefix.startswith(match.roots) for match in matches)


def _fits(row: Layout, prefix: str, names: Sequence[str], header: Header) -> bool:
    return (
        all(_occurs(marker, prefix, names) for marker in row.markers)
        and not any(_occurs(marker, prefix, names) for marker in row.absent)
        and all(_has_shape(header.shape(prefix + name), shape) for name, shape in row.shapes)
    )


def _occurs(marker: str, prefix: str, names: Sequence[str]) -> bool:
    for beginning in marker.split("|"):
        whole = prefix + beginning
        place = bisect_left(names, whole)
        if place < len(names) and names[place].startswith(whole):
            return True
    return False


def _has_shape(found: tuple[int, ...] | None, wanted: Shape) -> bool:
    if found is None or len(found) != len(wanted):
        return False
    return all(size is None or size == have for have, size in zip(found, wanted, strict=True))

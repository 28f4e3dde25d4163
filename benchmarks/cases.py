"""What a benchmark measures, case by case: a name to choose it by, and what makes its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.rows import OURS, Options, Row


@dataclass(frozen=True)
class Case:
    """rows: measures, and may fail. side: the one that is measured. work: in any unit that the time of the cases of a
    table grows with, such as operations.
    """

    name: str
    rows: Callable[[], Iterable[Row]]
    side: str = OURS
    work: float = 1.0


def all_rows(cases: Iterable[Case], options: Options) -> Iterator[Row]:
    """Of the cases that were asked for. What a case raises ends it all."""
    for case in cases:
        if options.wants(case.name):
            yield from case.rows()

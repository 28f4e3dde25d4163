"""How a table is filled: the cases that decide come first, each while there is time, and none that fails ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch

from benchmarks.cases import Case
from benchmarks.gpu import card
from benchmarks.rows import Options, Row, skipped_row
from hyvideo_lib.errors import OutOfMemory
from hyvideo_lib.shortage import is_out_of_memory, reason_of, release

NO_TIME = "no time left"


class Table:
    """One table and its time, which begins when this is made. now: a clock in seconds."""

    def __init__(self, benchmark: str, options: Options, now: Callable[[], float] = time.monotonic) -> None:
        self.benchmark = benchmark
        self._options, self._now = options, now
        self._end = now() + 60 * options.minutes
        self._paces: dict[str, float] = {}
        self._last = 0.0

    def rows_of(self, cases: Iterable[Case]) -> Iterator[Row]:
        """Of the cases that were asked for, in order; a case with no rows says why."""
        for case in cases:
            if not self._options.wants(case.name):
                continue
            if not self._has_time_for(case):
                yield skipped_row(self.benchmark, case.name, case.side, NO_TIME)
                continue
            begin, is_measured = self._now(), False
            for row in attempted(case.rows, self.benchmark, case.name, case.side, self._options.device):
                is_measured |= row["kind"] == "measured"
                yield row
            if is_measured:
                pace = (self._now() - begin) / case.work
                # A small case takes longer for its work, as what is done once is most of it.
                self._last = self._paces[case.side] = min(pace, self._paces.get(case.side, pace))

    def _has_time_for(self, case: Case) -> bool:
        """By the least time that a case of this side took for its work, or else that of the last side; the first case
        may always try."""
        left = self._end - self._now()
        return left > 0 and self._paces.get(case.side, self._last) * case.work <= left


def attempted(
    rows: Callable[[], Iterable[Row]], benchmark: str, case: str, side: str, device: torch.device
) -> Iterator[Row]:
    """The rows, and where making them fails, one that says why; what the failed call held is let go."""
    try:
        yield from rows()
    except Exception as error:  # whatever it is, other cases may tell something
        reason = why(error)
        release(error)
    else:
        return
    card.empty(device)
    yield skipped_row(benchmark, case, side, reason)


def why(error: Exception) -> str:
    """Why a case has no rows, in a line."""
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return f"{card.OUT_OF_MEMORY}: {reason_of(error)}"
    if isinstance(error, ImportError):
        return reason_of(error)
    return f"{type(error).__name__}: {reason_of(error)}"

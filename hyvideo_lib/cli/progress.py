"""Stages and steps as a bar: step, seconds per step, time left."""

from __future__ import annotations

import time

from .report import Console

BAR_WIDTH = 24
SHORTEST = 0.005
"""Seconds that are not told as 0.00."""


class Progress:
    """Listens to a host's stages and steps, and shows them on the console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._unit = ""
        self._done, self._begin = 0, 0.0

    def stage(self, name: str, total: int) -> None:
        """A stage begins, and with it the one before has ended."""
        self.close()
        self._name, self._unit, self._done = name, UNITS.get(name, "step"), 0
        self._begin = time.monotonic()
        if self._console.is_terminal:
            self._console.progress(bar(0, total, name, self._unit, 0.0) if total else f"{name} ...")

    def step(self, done: int, total: int) -> None:
        self._done = done
        line = bar(done, total, self._name, self._unit, self._seconds())
        self._console.progress(line, is_first=done == 1 and total > 1)

    def close(self) -> None:
        """End the stage that is on, in one line that stays."""
        if self._name:
            seconds, done = self._seconds(), self._done
            pace = seconds / max(done, 1)
            each = f", {pace:.2f} s per {self._unit}" if pace >= SHORTEST else ""
            count = f" ({done} {self._unit}s{each})" if done > 1 else ""
            self._console.progress(f"{self._name}: {duration(seconds)}{count}", is_last=True)
            self._name = ""

    def _seconds(self) -> float:
        return time.monotonic() - self._begin


UNITS = {"decoding": "tile", "encoding video": "tile", "writing": "frame", "converting": "tensor", "merging": "tensor"}
"""What a stage counts, where that is not steps."""


def bar(done: int, total: int, name: str, unit: str, seconds: float) -> str:
    """One line: name, bar, count, and once a step is done the seconds per step and the time left."""
    filled = BAR_WIDTH * done // max(total, 1)
    line = f"{name} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{total}"
    if not done:
        return line
    each = seconds / done
    return f"{line}, {each:.2f} s per {unit}, {duration(each * (total - done))} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: 3.2 s, 2 min 05 s, 1 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"

"""Frame rates: exact fractions from the times of a file's frames, and whether these lie on a grid at all."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from statistics import median

from ..errors import InvalidSetting

FPS_RANGE = (1.0, 240.0)
_DENOMINATOR = 1001
"""The largest of a usual rate: 24000/1001, 30000/1001, 60000/1001."""
_SAME = 1e-4
"""Rates that differ by less are one: 23.976 is 24000/1001, but 24 is not."""


def check_fps(fps: float) -> None:
    """Raises InvalidSetting outside of FPS_RANGE."""
    low, high = FPS_RANGE
    if not low <= fps <= high:
        raise InvalidSetting(f"fps is {fps}, but must be from {low:g} to {high:g}. Usual is 24.")


def exact_rate(fps: float | Fraction) -> Fraction:
    """The fraction that a number of frames per second stands for: 23.976023976 is 24000/1001."""
    return Fraction(fps).limit_denominator(_DENOMINATOR)


def is_same_rate(first: Fraction, second: Fraction) -> bool:
    return abs(first / second - 1) < _SAME


def rate_text(rate: Fraction) -> str:
    """A rate for people: 24, or 23.976 (24000/1001)."""
    return f"{rate.numerator}" if rate.denominator == 1 else f"{float(rate):.5g} ({rate})"


def find_rate(times: Sequence[Fraction], said: Fraction | None) -> tuple[Fraction | None, bool]:
    """The rate of frames at these times (seconds, rising), and whether it is constant.

    said: what the file itself says. Constant means that frames lie on a grid to half a frame, as they do where times
    are rounded. Of a variable rate it is the usual distance of two frames. (None, True) where nothing is known.
    """
    if len(times) < 2 or times[-1] <= times[0]:
        return said, True
    mean = exact_rate((len(times) - 1) / (times[-1] - times[0]))
    for rate in filter(None, (said, mean)):
        late = [time * rate - index for index, time in enumerate(times)]
        if max(late) - min(late) <= 1:
            return rate, True
    gaps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    usual = 1 / median(gaps)
    if said and abs(usual / said - 1) < 0.1:
        return said, False
    return exact_rate(usual), False

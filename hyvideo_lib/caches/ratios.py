"""Magnitude curves for MagCache: how the size of what the blocks add falls and rises along a run.

Measured as ratios from step to step, kept as a curve over noise levels, so that runs with other steps, shifts and
solvers can use it: between two levels the ratio is that of the curve there.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..atomic import whole_file
from ..errors import InvalidSetting


@dataclass(frozen=True)
class MagCurve:
    """levels: noise levels, falling; ratios: of magnitudes, from each to the next, one fewer. Raises InvalidSetting."""

    levels: tuple[float, ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise(self.levels))
        if len(self.levels) < 2 or len(self.ratios) != len(self.levels) - 1 or not falling:
            raise InvalidSetting(
                f"{len(self.ratios)} magnitude ratios for {len(self.levels)} noise levels: there must be one fewer "
                "than levels, and the levels must fall. Measure them again with --measure-ratios."
            )
        if not all(math.isfinite(r) and r > 0 for r in self.ratios):
            raise InvalidSetting("Magnitude ratios must be above 0. Measure them again with --measure-ratios.")

    @property
    def fingerprint(self) -> str:
        """Twelve digits that tell it from other curves."""
        return hashlib.sha256(json.dumps([self.levels, self.ratios]).encode()).hexdigest()[:12]

    def between(self, sigma: float, sigma_next: float) -> float:
        """Magnitude at sigma_next over that at sigma; log-linear between levels, constant beyond both ends."""
        return math.exp(self._log_at(sigma_next) - self._log_at(sigma))

    def _log_at(self, sigma: float) -> float:
        rising = [-level for level in self.levels]
        place = bisect_left(rising, -sigma)
        whole = math.fsum(math.log(r) for r in self.ratios[: max(0, place - 1)])
        if place in (0, len(rising)):
            return whole
        above, below = self.levels[place - 1], self.levels[place]
        return whole + (above - sigma) / (above - below) * math.log(self.ratios[place - 1])


@dataclass(frozen=True)
class Measured:
    """A curve, the model that it was measured on (hidden size, double, single blocks), and at which frame size.

    pixels: of a frame; None if the size did not matter.
    """

    model: tuple[int, int, int]
    pixels: int | None
    curve: MagCurve


def find_curve(table: Iterable[Measured], model: tuple[int, int, int], pixels: int) -> MagCurve:
    """The curve for a model, measured nearest in frame size. Raises InvalidSetting if there is none for it."""
    rows = [row for row in table if row.model == model]
    if not rows:
        raise InvalidSetting(
            f"MagCache needs magnitude ratios, and there are none for a transformer of width {model[0]} with "
            f"{model[1]} + {model[2]} blocks. Measure them once (`hyvideo generate ... --measure-ratios FILE`) and "
            "give them with --cache-ratios FILE, or choose another method."
        )
    return min(rows, key=lambda row: abs(math.log(pixels / row.pixels)) if row.pixels else 0.0).curve


def load_curve(path: Path) -> MagCurve:
    """Read what `save_curve` wrote. Raises InvalidSetting."""
    try:
        if not path.is_file():  # opening a pipe would wait for whoever fills it
            raise FileNotFoundError("there is no such file")
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise _no_ratios(path.name, error) from error
    return parse_curve(text, path.name)


def parse_curve(text: str, name: str) -> MagCurve:
    """The curve from the text of a file that `save_curve` wrote. name: where it comes from. Raises InvalidSetting."""
    try:
        found = json.loads(text)
        return MagCurve(tuple(map(float, found["levels"])), tuple(map(float, found["ratios"])))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _no_ratios(name, error) from error


def _no_ratios(name: str, error: Exception) -> InvalidSetting:
    return InvalidSetting(
        f"{name} holds no magnitude ratios ({type(error).__name__}: {error}). Measure them with "
        "`hyvideo generate ... --measure-ratios FILE`."
    )


def save_curve(path: Path, curve: MagCurve, about: dict[str, Any] | None = None, overwrite: bool = False) -> None:
    """Write a curve as JSON. about: what it was measured on, for people."""
    text = json.dumps({"levels": curve.levels, "ratios": curve.ratios, **(about or {})}, indent=1)
    with whole_file(path, overwrite) as temporary:
        temporary.write_text(text + "\n", "utf-8")

"""TeaCache: the drift of the first block's modulated input foretells that of the model's answer.

Liu et al. 2024, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv:2411.19108). The change
of that input from step to step, relative to its size, goes through a polynomial that its authors fitted to
HunyuanVideo; the results add up, and when they reach the threshold the step is computed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .drift import relative_change
from .place import Place
from .run import StepCache

COEFFICIENTS = (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02)
"""Fitted to the released model at 50 steps, highest power first. It never falls to 0 over the changes that occur."""


def polynomial(x: float) -> float:
    """COEFFICIENTS at x."""
    value = 0.0
    for coefficient in COEFFICIENTS:
        value = value * x + coefficient
    return value


class TeaRule:
    """seen: the modulated input of the first block, [B, L, D]. Compared with the last step's, computed or not."""

    def __init__(self, threshold: float, place: Place) -> None:
        self._threshold, self._place = threshold, place
        self._before: Tensor | None = None
        self._drifts: list[float] = []

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        drifts = [0.0] * len(seen)
        if self._before is not None:
            changes = relative_change(seen, self._before, self._place.fetch)
            drifts = [old + polynomial(change) for old, change in zip(self._drifts, changes, strict=True)]
        self._before, self._drifts = self._place.store(seen), drifts
        return all(drift < self._threshold for drift in drifts)

    def was_computed(self, made: Tensor) -> None:
        self._drifts = [0.0] * len(self._drifts)


class TeaCache(StepCache):
    """Skips all blocks."""

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        return self.answer(lambda: self.deciding(modulated_fn()), img)

    def after_blocks(self, img: Tensor) -> None:
        self.computed(img)

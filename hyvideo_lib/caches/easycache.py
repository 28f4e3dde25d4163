"""EasyCache: the run itself shows how strongly the answer follows the input, and whole calls are skipped by that.

Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching"
(arXiv:2507.02860). Between the last two computed calls the velocity changed by so much per change of the latents; at
that rate, and relative to the velocity's size, the change of the latents since then says how stale the answer would be.
The difference between velocity and latents is kept, so the whole transformer is skipped.
"""

from __future__ import annotations

from torch import Tensor

from .drift import mean_change, ratio
from .run import StepCache, StoreFn


class EasyRule:
    """seen: latents [B, C, T, H, W]; made: their velocity."""

    def __init__(self, threshold: float, store: StoreFn) -> None:
        self._threshold, self._store = threshold, store
        self._latest: Tensor | None = None  # latents of the last step
        self._input: Tensor | None = None  # latents and velocity of the last computed one
        self._output: Tensor | None = None
        self._rates: list[float] = []  # change of velocity per change of latents, relative to the velocity's size
        self._drifts: list[float] = []

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        before, self._latest = self._latest, self._store(seen)
        if before is None or not self._rates:
            return False
        moved, _ = mean_change(seen, before)
        self._drifts = [old + rate * by for old, rate, by in zip(self._drifts, self._rates, moved, strict=True)]
        return all(drift < self._threshold for drift in self._drifts)

    def was_computed(self, made: Tensor) -> None:
        assert self._latest is not None
        latents, velocity = self._latest, self._store(made)
        if self._input is not None and self._output is not None:
            turned, _ = mean_change(velocity, self._output)
            moved, _ = mean_change(latents, self._input)
            _, sizes = mean_change(velocity, velocity)
            self._rates = [ratio(ratio(t, m), size) for t, m, size in zip(turned, moved, sizes, strict=True)]
        self._input, self._output = latents, velocity
        self._drifts = [0.0] * len(made)


class EasyCache(StepCache):
    """Skips the whole call."""

    def before_call(self, latents: Tensor) -> Tensor | None:
        return self.answer(latents, latents)

    def after_call(self, velocity: Tensor) -> None:
        self.computed(velocity)

"""EasyCache: the run itself shows how strongly the answer follows the input, and whole calls are skipped by that.

Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching"
(arXiv:2507.02860). Between the last two computed calls the velocity changed by so much per change of the latents; at
that rate, and relative to the velocity's size, the change of the latents since then says how stale the answer would be.
The difference between velocity and latents is kept, so the whole transformer is skipped.
"""

from __future__ import annotations

from torch import Tensor

from .drift import mean_change, ratio
from .place import Place
from .run import StepCache


class EasyRule:
    """seen: latents [B, C, T, H, W]; made: their velocity."""

    def __init__(self, threshold: float, place: Place) -> None:
        self._threshold, self._place = threshold, place
        self._latest: Tensor | None = None  # latents of the last step
        self._input: Tensor | None = None  # latents and velocity of the last computed one
        self._output: Tensor | None = None
        self._rates: list[float] = []  # change of velocity per change of latents, relative to the velocity's size
        self._drifts: list[float] = []

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        before, drifts = self._latest, self._drifts
        is_known = before is not None and bool(self._rates)
        if before is not None and self._rates:
            moved, _ = mean_change(seen, before, self._place.fetch)
            drifts = [old + rate * by for old, rate, by in zip(drifts, self._rates, moved, strict=True)]
        self._latest, self._drifts = self._place.store(seen), drifts
        return is_known and all(drift < self._threshold for drift in drifts)

    def was_computed(self, made: Tensor) -> None:
        assert self._latest is not None
        rates, fetch = self._rates, self._place.fetch
        if self._input is not None and self._output is not None:
            turned, _ = mean_change(made, self._output, fetch)
            moved, _ = mean_change(fetch(self._latest, made.device), self._input, fetch)
            _, sizes = mean_change(made, made)
            rates = [ratio(ratio(t, m), size) for t, m, size in zip(turned, moved, sizes, strict=True)]
        self._output = self._place.store(made)
        self._input, self._rates = self._latest, rates
        self._drifts = [0.0] * len(made)


class EasyCache(StepCache):
    """Skips the whole call."""

    def before_call(self, latents: Tensor) -> Tensor | None:
        return self.answer(lambda: self.deciding(latents), latents)

    def after_call(self, velocity: Tensor) -> None:
        self.computed(velocity)

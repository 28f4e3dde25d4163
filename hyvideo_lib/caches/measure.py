"""Measures a magnitude curve for MagCache: a run that skips nothing and looks at what the blocks add."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidSetting
from .drift import chunks
from .place import Place
from .ratios import MagCurve
from .run import Limits, RuleFn, StepCache

NEEDS_STEPS = "Magnitude ratios are measured over two steps or more, the same in every video. Give --steps 20."


class _Never:
    """A rule that skips nothing."""

    def __init__(self, place: Place) -> None:
        pass

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        return False

    def was_computed(self, made: Tensor) -> None:
        pass


class Measurement(StepCache):
    """Ratios of magnitudes over any number of runs with the same levels; the first pass at each level counts.

    A ratio is that of the norms of what a token got from all blocks, at one level and the last, averaged over the
    tokens, the items, the runs, and the branches that a level has: guidance may be on for a part of a run.
    """

    def __init__(self) -> None:
        rule_fn: RuleFn = _Never
        super().__init__(Limits("measure", 0.0, 0.0, 1.0, None, False), (), rule_fn)
        self._ratios: dict[float, list[float]] = {}
        self._norms: dict[tuple[str, int], tuple[float, Tensor]] = {}
        self._runs: list[list[float]] = []
        self._before: Tensor | None = None

    def begin(
        self, sigma: float, passing: tuple[str, ...], branches: tuple[str, ...] | None = None, window: int = 0
    ) -> None:
        if not self._runs or sigma > self._sigma:
            self._norms.clear()
            self._runs.append([])
        super().begin(sigma, passing, branches, window)

    def release(self) -> None:
        super().release()
        self._norms.clear()
        self._before = None

    def forget(self) -> None:
        super().forget()
        self._before = None

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        self._before = self.place.store(img)
        return None

    def after_blocks(self, img: Tensor) -> None:
        assert self._before is not None
        if self._sigma not in self._runs[-1]:
            self._runs[-1].append(self._sigma)
        norms = token_norms(img, self._before)
        self._before = None
        for branch, part in zip(self._passing, self._parts(norms), strict=True):
            key = branch, self._window
            level, last = self._norms.get(key, (None, None))
            if level == self._sigma:
                continue
            if last is not None:
                self._ratios.setdefault(self._sigma, []).append((part / last).mean().item())
            self._norms[key] = self._sigma, part

    def curve(self) -> MagCurve:
        """What was measured. Raises InvalidSetting if no run had two steps, or runs had different levels."""
        levels = max(self._runs, key=len, default=[])
        if len(levels) < 2 or any(run != levels[: len(run)] for run in self._runs):  # a run that failed ends early
            raise InvalidSetting(NEEDS_STEPS)
        found = [self._ratios[level] for level in levels[1:]]
        return MagCurve(tuple(levels), tuple(round(sum(ratios) / len(ratios), 5) for ratios in found))


def token_norms(now: Tensor, before: Tensor) -> Tensor:
    """Norm of the difference of each token, [B, L] of [B, L, D], in float32."""
    parts = [(now[:, rows].float() - before[:, rows].float()).norm(dim=-1) for rows in chunks(now.shape[1])]
    return torch.cat(parts, dim=1)

"""Measures a magnitude curve for MagCache: a run that skips nothing and looks at what the blocks add."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .drift import CHUNK_TOKENS
from .ratios import MagCurve
from .run import Key, Limits, Rule, StepCache, StoreFn


class _Never:
    """A rule that skips nothing."""

    def __init__(self, store: StoreFn) -> None:
        pass

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        return False

    def was_computed(self, made: Tensor) -> None:
        pass


class Measurement(StepCache):
    """Ratios of magnitudes over any number of runs with these levels; the first pass at each level counts.

    A ratio is that of the norms of what a token got from all blocks, at one level and the last, averaged over the
    tokens, the items, the branches and the runs.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        rule_fn: Callable[[StoreFn], Rule] = _Never
        super().__init__(Limits("measure", 0.0, 0.0, 1.0, None, False), levels, rule_fn)
        self._ratios: dict[float, list[float]] = {}
        self._norms: dict[Key, tuple[float, Tensor]] = {}
        self._before: Tensor | None = None

    def begin(self, sigma: float, branches: tuple[str, ...], window: int = 0) -> None:
        if sigma > self._sigma:
            self._norms.clear()
        super().begin(sigma, branches, window)

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        self._before = self.store(img)
        return None

    def after_blocks(self, img: Tensor) -> None:
        assert self._before is not None
        norms = token_norms(img, self._before)
        self._before = None
        for key, part in zip(self._keys, norms.chunk(len(self._keys)), strict=True):
            level, last = self._norms.get(key, (None, None))
            if level == self._sigma:
                continue
            if last is not None:
                self._ratios.setdefault(self._sigma, []).append((part / last).mean().item())
            self._norms[key] = self._sigma, part

    def curve(self) -> MagCurve:
        """What was measured. Raises InvalidSetting if that was a single step."""
        seen = [level for level in self.levels if level in self._ratios]
        first = self.levels[self.levels.index(seen[0]) - 1] if seen else 1.0
        means = (sum(self._ratios[level]) / len(self._ratios[level]) for level in seen)
        return MagCurve((first, *seen), tuple(round(mean, 5) for mean in means))


def token_norms(now: Tensor, before: Tensor) -> Tensor:
    """Norm of the difference of each token, [B, L] of [B, L, D], in float32."""
    rows = [slice(low, low + CHUNK_TOKENS) for low in range(0, now.shape[1], CHUNK_TOKENS)]
    return torch.cat([(now[:, part].float() - before[:, part].float()).norm(dim=-1) for part in rows], dim=1)

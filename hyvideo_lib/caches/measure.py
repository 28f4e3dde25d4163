"""Measures a magnitude curve for MagCache: a run that skips nothing and looks at what the blocks add."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidSetting
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
    """Ratios of magnitudes over any number of runs with the same levels; the first pass at each level counts.

    A ratio is that of the norms of what a token got from all blocks, at one level and the last, averaged over the
    tokens, the items, the branches and the runs.
    """

    def __init__(self) -> None:
        rule_fn: Callable[[StoreFn], Rule] = _Never
        super().__init__(Limits("measure", 0.0, 0.0, 1.0, None, False), (), rule_fn)
        self._ratios: dict[float, list[float]] = {}
        self._norms: dict[Key, tuple[float, Tensor]] = {}
        self._levels: set[float] = set()
        self._before: Tensor | None = None

    def begin(self, sigma: float, branches: tuple[str, ...], window: int = 0) -> None:
        if sigma > self._sigma:
            self._norms.clear()
        super().begin(sigma, branches, window)

    def release(self) -> None:
        super().release()
        self._norms.clear()
        self._before = None

    def forget(self) -> None:
        super().forget()
        self._before = None

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        self._before = self.store(img)
        return None

    def after_blocks(self, img: Tensor) -> None:
        assert self._before is not None
        self._levels.add(self._sigma)
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
        """What was measured. Raises InvalidSetting if no run had two steps, or runs had different levels."""
        levels = sorted(self._levels, reverse=True)
        found = [self._ratios.get(level, []) for level in levels[1:]]
        if not found or len({len(ratios) for ratios in found}) > 1:
            raise InvalidSetting(
                "Magnitude ratios are measured over two steps or more, the same in every video. Give --steps 20."
            )
        return MagCurve(tuple(levels), tuple(round(sum(ratios) / len(ratios), 5) for ratios in found))


def token_norms(now: Tensor, before: Tensor) -> Tensor:
    """Norm of the difference of each token, [B, L] of [B, L, D], in float32."""
    rows = [slice(low, low + CHUNK_TOKENS) for low in range(0, now.shape[1], CHUNK_TOKENS)]
    return torch.cat([(now[:, part].float() - before[:, part].float()).norm(dim=-1) for part in rows], dim=1)

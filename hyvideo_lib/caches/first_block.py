"""First-block cache: the first block is always computed, and what it adds tells whether the others must be.

From ParaAttention (github.com/chengzeyi/ParaAttention), a variant of AdaCache: the first block's residual is compared
with that of the last computed step; while the relative change is below the threshold, the residual of the remaining
blocks is taken from that step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .drift import relative_change
from .run import StepCache, StoreFn


class FirstBlockRule:
    """seen: what the first block added, [B, L, D]. Compared with the last computed step's."""

    def __init__(self, threshold: float, store: StoreFn) -> None:
        self._threshold, self._store = threshold, store
        self._reference: Tensor | None = None
        self._latest: Tensor | None = None

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        self._latest = None
        reference = self._reference
        is_close = reference is not None and all(c < self._threshold for c in relative_change(seen, reference))
        self._latest = self._store(seen)  # even if close: another item, or a limit, may want the pass computed
        return is_close

    def was_computed(self, made: Tensor) -> None:
        self._reference, self._latest = self._latest, None


class FirstBlockCache(StepCache):
    """Skips all blocks but the first."""

    _before: Tensor | None = None

    def release(self) -> None:
        super().release()
        self._before = None

    def forget(self) -> None:
        super().forget()
        self._before = None

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        self._before = self.store(img)
        return None

    def after_first(self, img: Tensor) -> Tensor | None:
        assert self._before is not None
        added = img - self._before.to(img.device)
        self._before = None
        return self.answer(added, img)

    def after_blocks(self, img: Tensor) -> None:
        self.computed(img)

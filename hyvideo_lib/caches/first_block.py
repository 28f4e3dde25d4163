"""First-block cache: the first block is always computed, and what it adds tells whether the others must be.

From ParaAttention (github.com/chengzeyi/ParaAttention), a variant of AdaCache: the first block's residual is compared
with that of the last computed step; while the relative change is below the threshold, the residual of the remaining
blocks is taken from that step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .drift import relative_change
from .place import Place
from .run import StepCache


class FirstBlockRule:
    """seen: what the first block added, [B, L, D]. Compared with the last computed step's."""

    def __init__(self, threshold: float, place: Place) -> None:
        self._threshold, self._place = threshold, place
        self._reference: Tensor | None = None
        self._latest: Tensor | None = None

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        self._latest = None
        reference, fetch = self._reference, self._place.fetch
        is_close = reference is not None and all(c < self._threshold for c in relative_change(seen, reference, fetch))
        self._latest = self._place.store(seen)  # even if close: a limit may want the pass computed
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
        self._before = None if self.is_decided(img) else self.place.store(self.deciding(img))
        return None

    def after_first(self, img: Tensor) -> Tensor | None:
        return self.answer(lambda: self._added(self.deciding(img)), img)

    def after_blocks(self, img: Tensor) -> None:
        self.computed(img)

    def _added(self, img: Tensor) -> Tensor:
        """What the first block made of the deciding branch, less what it was given."""
        assert self._before is not None
        before, self._before = self._before, None
        return img - self.place.fetch(before, img.device)

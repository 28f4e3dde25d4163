"""MagCache: what the blocks add changes in size along a curve that is nearly the same for every prompt.

Ma et al. 2025, "MagCache: Fast Video Generation with Magnitude-Aware Cache" (arXiv:2506.09045). Reusing an addition
that was made n steps ago is wrong by about the distance from 1 of the product of the ratios since then. These errors
add up, and when they exceed the threshold, or too many steps were skipped in a row, the step is computed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..sampling import make_sigmas
from .demo_ratios import DEMO
from .ratios import MagCurve, Measured
from .run import StepCache

_RELEASED = (3072, 20, 40)
_540P = (
    *(1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632, 1.02974),
    *(1.00984, 1.03028, 1.00681, 1.06614, 1.05022, 1.02592, 1.01776, 1.02985, 1.00726, 1.03727),
    *(1.01502, 1.00992, 1.03371, 0.9976, 1.02742, 1.0093, 1.01869, 1.00815, 1.01461, 1.01152),
    *(1.03082, 1.0061, 1.02162, 1.01999, 0.99063, 1.01186, 1.0217, 0.99947, 1.01711, 0.9904),
    *(1.00258, 1.00878, 0.97039, 0.97686, 0.94315, 0.97728, 0.91154, 0.86139, 0.76592),
)
_720P = (
    *(1.0754, 1.27807, 1.11596, 1.09504, 1.05188, 1.00844, 1.05779, 1.00657, 1.04142, 1.03101),
    *(1.00679, 1.02556, 1.00908, 1.06949, 1.05438, 1.02214, 1.02321, 1.03019, 1.00779, 1.03381),
    *(1.01886, 1.01161, 1.02968, 1.00544, 1.02822, 1.00689, 1.02119, 1.0105, 1.01044, 1.01572),
    *(1.02972, 1.0094, 1.02368, 1.0226, 0.98965, 1.01588, 1.02146, 1.0018, 1.01687, 0.99436),
    *(1.00283, 1.01139, 0.97122, 0.98251, 0.94513, 0.97656, 0.90943, 0.85703, 0.75456),
)


def _at_50_steps(ratios: tuple[float, ...]) -> MagCurve:
    return MagCurve(tuple(make_sigmas(50, 7.0)[:-1].tolist()), ratios)


CURVES = (
    Measured(_RELEASED, 544 * 960, _at_50_steps(_540P)),
    Measured(_RELEASED, 720 * 1280, _at_50_steps(_720P)),
    DEMO,
)
"""The released model's are those that MagCache's authors publish (github.com/Zehong-Ma/MagCache), for 50 steps and
shift 7; the demo model's were measured here (`hyvideo bench caches`)."""


class MagRule:
    """seen: nothing but the noise level."""

    def __init__(self, threshold: float, curve: MagCurve) -> None:
        self._threshold, self._curve = threshold, curve
        self._sigma: float | None = None
        self._ratio, self._error = 1.0, 0.0

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        before, self._sigma = self._sigma, sigma
        if before is None:
            return False
        self._ratio *= self._curve.between(before, sigma)
        self._error += abs(1.0 - self._ratio)
        return self._error <= self._threshold

    def was_computed(self, made: Tensor) -> None:
        self._ratio, self._error = 1.0, 0.0


class MagCache(StepCache):
    """Skips all blocks."""

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        return self.answer(lambda: img, img)

    def after_blocks(self, img: Tensor) -> None:
        self.computed(img)

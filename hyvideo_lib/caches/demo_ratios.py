"""The demo model's magnitude curve, as `hyvideo bench caches --only curve` measured it on eight clips."""

from __future__ import annotations

from ..sampling import make_sigmas
from .ratios import MagCurve, Measured

_RATIOS = (
    *(1.0461, 1.00907, 0.97429, 1.00805, 0.99553, 0.96985, 0.99138, 0.97483, 0.98048, 0.97809),
    *(0.98413, 0.97765, 0.96526, 0.97436, 0.96541, 0.94519, 0.9396, 0.91398, 0.86882),
)

DEMO = Measured((256, 2, 6), None, MagCurve(tuple(make_sigmas(20, 3.0)[:-1].tolist()), _RATIOS))
"""At 20 steps and shift 3, as the demo runs."""

"""Step caches: passes of the transformer that are answered from earlier ones. They trade quality for speed."""

from .config import METHODS, CacheConfig, Method
from .measure import Measurement
from .ratios import MagCurve, load_curve, parse_curve, save_curve
from .run import CacheReport, StepCache

__all__ = [
    "METHODS",
    "CacheConfig",
    "CacheReport",
    "MagCurve",
    "Measurement",
    "Method",
    "StepCache",
    "load_curve",
    "parse_curve",
    "save_curve",
]

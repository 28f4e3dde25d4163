"""Whether a step cache can be used with a transformer, or be measured: before anything is loaded."""

from __future__ import annotations

from ..caches import CacheConfig
from ..caches.measure import NEEDS_STEPS
from ..checkpoint import FileReport
from ..errors import InvalidSetting
from ..sampling import make_sigmas, truncate_sigmas
from .request import GenerateRequest


def check_cache(cache: CacheConfig | None, transformer: FileReport, pixels: int) -> None:
    """Raises InvalidSetting if MagCache has no ratios for the transformer. pixels: of a frame."""
    sizes = transformer.config or {}
    if cache and sizes:
        cache.curve_for((sizes["hidden_size"], sizes["num_double_blocks"], sizes["num_single_blocks"]), pixels)


def check_measuring(request: GenerateRequest) -> None:
    """Raises InvalidSetting if magnitude ratios cannot be measured on such a run."""
    if len(truncate_sigmas(make_sigmas(request.steps, request.shift), request.strength)) < 3:
        raise InvalidSetting(NEEDS_STEPS)

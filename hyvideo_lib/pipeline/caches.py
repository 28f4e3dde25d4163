"""Whether a step cache can be used with a transformer: from its file's header, before anything is loaded."""

from __future__ import annotations

from ..caches import CacheConfig
from ..checkpoint import FileReport


def check_cache(cache: CacheConfig | None, transformer: FileReport, pixels: int) -> None:
    """Raises InvalidSetting if MagCache has no ratios for the transformer. pixels: of a frame."""
    sizes = transformer.config or {}
    if cache and sizes:
        cache.curve_for((sizes["hidden_size"], sizes["num_double_blocks"], sizes["num_single_blocks"]), pixels)

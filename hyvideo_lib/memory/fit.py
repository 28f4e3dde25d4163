"""The largest VAE tiles that fit: as few cuts as the memory allows, because every cut changes the picture a little."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from ..geometry import align_up
from .estimate import vae_bytes

SIZES = (1024, 768, 512, 384, 256, 192, 128)
"""Sides of tiles in pixels, largest first."""
LENGTHS = (64, 32, 16)
"""Frames of tiles."""
SIZE_UNIT, LENGTH_UNIT = 32, 16
"""Tiles share a quarter of their side and length, which must be whole latents."""


def fit_tiles(
    block_channels: Sequence[int], frames: int, height: int, width: int, item_size: int, free: int
) -> tuple[int, int] | None:
    """(size in pixels, frames) of the largest tiles whose work fits into `free` bytes; None if no cut is needed.

    The smallest there are where nothing fits: the run may still succeed, the estimate being on the safe side.
    """
    if vae_bytes(block_channels, frames, height, width, item_size) <= free:
        return None
    longest, whole = align_up(max(height, width), SIZE_UNIT), align_up(frames, LENGTH_UNIT)
    sizes = [size for size in (longest, *SIZES) if size <= longest]
    lengths = [length for length in (whole, *LENGTHS) if length <= whole]

    def work(tile: tuple[int, int]) -> int:
        size, length = tile
        return vae_bytes(block_channels, min(length, frames), min(size, height), min(size, width), item_size)

    fitting = [tile for tile in product(sizes, lengths) if work(tile) <= free]
    return max(fitting, key=work) if fitting else (sizes[-1], lengths[-1])

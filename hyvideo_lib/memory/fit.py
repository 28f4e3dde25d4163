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
    candidates = _candidates(block_channels, frames, height, width, item_size)
    fitting = [tile for tile, work in candidates if work <= free]
    return fitting[0] if fitting else candidates[-1][0]


def smaller_tiles(
    block_channels: Sequence[int], frames: int, height: int, width: int, item_size: int, limit: int, free: int | None
) -> tuple[int, int] | None:
    """(size in pixels, frames) of the largest tiles whose work takes at most `limit` bytes; None if there are none.

    free: where it is known, the largest that fit into it as well, or the smallest where none do.
    """
    candidates = _candidates(block_channels, frames, height, width, item_size)
    small = [(tile, work) for tile, work in candidates if work <= limit]
    if not small:
        return None
    return next((tile for tile, work in small if free is None or work <= free), small[-1][0])


def _candidates(
    block_channels: Sequence[int], frames: int, height: int, width: int, item_size: int
) -> list[tuple[tuple[int, int], int]]:
    """Tiles (size, frames) with the bytes of their work, the largest work first."""
    longest, whole = align_up(max(height, width), SIZE_UNIT), align_up(frames, LENGTH_UNIT)
    sizes = [size for size in (longest, *SIZES) if size <= longest]
    lengths = [length for length in (whole, *LENGTHS) if length <= whole]

    def work(tile: tuple[int, int]) -> int:
        size, length = tile
        return vae_bytes(block_channels, min(length, frames), min(size, height), min(size, width), item_size)

    return sorted(((tile, work(tile)) for tile in product(sizes, lengths)), key=lambda pair: pair[1], reverse=True)

"""VAE tiles that fit: of those that do, the ones with the least to compute, as what tiles share is computed twice.

That also means few cuts, each of which changes the picture a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

from ..geometry import align_up

Tile = tuple[int, int]
"""Side in pixels, and frames."""
SIZES = tuple(range(1024, 96, -32))
"""Sides of tiles in pixels, largest first."""
LENGTHS = (128, 96, 80, 64, 48, 32, 16)
"""Frames of tiles."""
SIZE_UNIT, LENGTH_UNIT = 32, 16
"""Tiles share a quarter of their side and length, which must be whole latents."""


def candidate_tiles(frames: int, height: int, width: int) -> list[Tile]:
    """The tiles to choose from for a video of so many frames and pixels: of the tables, and as large as it is."""
    longest, whole = align_up(max(height, width), SIZE_UNIT), align_up(frames, LENGTH_UNIT)
    sizes = {longest, *(size for size in SIZES if size <= longest)}
    lengths = {whole, *(length for length in LENGTHS if length <= whole)}
    return sorted(product(sizes, lengths), reverse=True)


def first_fitting(tiles: Iterable[Tile], fits: Callable[[Tile], bool]) -> Tile | None:
    """The first of the tiles that fits. Those at least as wide and long as one that does not are not asked about."""
    failed: list[Tile] = []
    for size, length in tiles:
        if any(size >= other_size and length >= other_length for other_size, other_length in failed):
            continue
        if fits((size, length)):
            return size, length
        failed.append((size, length))
    return None

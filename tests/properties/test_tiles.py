"""What holds for every cut into tiles: where tiles agree, joining them gives back the whole, whatever its size."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyvideo_lib.vae.tiling import Axis, Tiles, blend, tail, tile_space, tile_time

TILES = st.builds(
    lambda overlap, size, frames: Tiles(32 * size, 16 * frames, overlap),
    st.sampled_from((0.0, 0.25, 0.5, 0.75)),
    st.integers(1, 3),
    st.integers(1, 3),
)
FEW = settings(max_examples=30)


def counted(*size: int) -> Tensor:
    """No two elements alike."""
    return torch.arange(torch.Size(size).numel(), dtype=torch.float64).view(size)


@FEW
@given(tiles=TILES, height=st.integers(1, 30), width=st.integers(1, 30))
def test_tiles_in_space_that_are_left_alone_join_to_the_whole(tiles: Tiles, height: int, width: int) -> None:
    whole = counted(1, 2, 1, height, width)
    joined = tile_space(whole, torch.clone, tiles.space, tiles.space)
    # Blending weights are float32: 1e-7 of the largest number.
    assert torch.allclose(joined, whole, rtol=0, atol=1e-6 * whole.numel())
    assert joined.shape == whole.shape


@FEW
@given(tiles=TILES, frames=st.integers(1, 40))
def test_tiles_in_time_that_are_left_alone_join_to_the_whole(tiles: Tiles, frames: int) -> None:
    whole = counted(1, 2, frames, 2, 2)
    joined = tile_time(whole, torch.clone, tiles.time, tiles.time)
    assert joined.shape == whole.shape
    assert torch.allclose(joined, whole, rtol=0, atol=1e-6 * whole.numel())


@FEW
@given(tiles=TILES, size=st.integers(1, 60))
def test_no_tile_is_longer_than_its_length_and_every_place_is_in_one(tiles: Tiles, size: int) -> None:
    axis = tiles.space
    covered: set[int] = set()
    for start in axis.starts(size):
        covered |= set(range(start, min(size, start + axis.length)))
    assert covered == set(range(size))
    assert (axis.stride + axis.shared, (axis * 8).length) == (axis.length, axis.length * 8)


@given(before=st.integers(0, 6), length=st.integers(1, 6), extent=st.integers(0, 8))
def test_a_fade_goes_from_the_old_to_the_new_and_touches_nothing_else(before: int, length: int, extent: int) -> None:
    tile = torch.ones(1, 1, length, 1, 1)
    blend(torch.zeros(1, 1, before, 1, 1), tile, 2, extent)  # so that the tile becomes the weights themselves
    faded = min(before, length, extent)
    assert torch.equal(tile.flatten()[:faded], torch.arange(faded) / max(1, faded))
    assert bool((tile.flatten()[faded:] == 1).all())


@given(length=st.integers(1, 9), extent=st.integers(0, 12))
def test_a_tail_is_a_copy_of_the_end(length: int, extent: int) -> None:
    tile = counted(1, 1, length, 1, 1)
    kept = tail(tile, 2, extent)
    assert torch.equal(kept.flatten(), tile.flatten()[length - min(length, extent) :])
    tile.zero_()
    assert kept.shape[2] == 0 or kept.flatten()[-1] == length - 1


def test_an_axis_knows_its_shares() -> None:
    assert Axis.of(16, 0.25) == Axis(length=16, stride=12, shared=4)

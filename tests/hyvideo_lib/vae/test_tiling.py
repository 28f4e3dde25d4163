from __future__ import annotations

import itertools
from collections.abc import Callable
from itertools import count

import pytest
import torch
from tiny import difference
from torch import Tensor

from hyvideo_lib.errors import InvalidTiles
from hyvideo_lib.vae import Tiles
from hyvideo_lib.vae.tiling import Axis, blend, tail, tile_space, tile_time

SMALL = Tiles(32, 16)
OVERLAPS = [0.0, 0.25, 0.5, 0.75]


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(seed))


def both_ways(axis: Axis, factor: int) -> list[tuple[Axis, Axis]]:
    """(source, target) when decoding and when encoding."""
    return [(axis, axis * factor), (axis * factor, axis)]


def test_a_cost_counts_the_tiles_that_are_made_and_what_they_share_twice() -> None:
    assert Tiles().cost(5, 64, 64) == (2 * 8 * 8, 1)
    assert Tiles(32, 16).cost(37, 64, 40) == (14 * 10 * 6, 18)


@pytest.mark.parametrize(("tiles", "video"), [(Tiles(), (5, 64, 64)), (Tiles(32, 16), (37, 64, 40))])
def test_pairs_of_attention_are_those_of_every_tile(tiles: Tiles, video: tuple[int, int, int]) -> None:
    """A query of frame t sees the keys of frames 0 to t."""
    spans, rows, columns = tiles.parts(*video)
    pairs = sum(
        (row * column) * (frame + 1) * row * column
        for span, row, column in itertools.product(spans, rows, columns)
        for frame in range(span)
    )
    assert tiles.attention_pairs(*video) == pairs


def test_without_numbers_tiles_in_the_middle_are_left_out() -> None:
    x, made = torch.empty(1, 2, 1, 100, 100, device="meta"), []

    def tile_fn(tile: Tensor) -> Tensor:
        made.append(tile.shape[3:])
        return tile.clone()

    axis = Axis(4, 3, 1)
    assert tile_space(x, tile_fn, axis, axis).shape == x.shape
    assert made == [(a, b) for a in (4, 4, 1) for b in (4, 4, 1)]


# Stand-ins for the VAE that treat every pixel alone, so that tiles agree wherever they overlap


def grow_space(x: Tensor) -> Tensor:
    return x.repeat_interleave(8, 3).repeat_interleave(8, 4)


def shrink_space(x: Tensor) -> Tensor:
    return x[..., ::8, ::8].clone()


def grow_time(x: Tensor) -> Tensor:
    """The first frame alone, four for every later one."""
    return torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(4, 2)], dim=2)


def shrink_time(x: Tensor) -> Tensor:
    return x[:, :, ::4].clone()


# Which tiles there are


def test_the_defaults_are_the_reference() -> None:
    assert Tiles() == Tiles(size=256, frames=64, overlap=0.25)
    assert Tiles().space == Axis(length=32, stride=24, shared=8)
    assert Tiles().time == Axis(length=16, stride=12, shared=4)
    assert Tiles().space * 8 == Axis(length=256, stride=192, shared=64)
    assert Tiles().time * 4 == Axis(length=64, stride=48, shared=16)


@pytest.mark.parametrize(("name", "unit"), [("size", 32), ("frames", 16)])
def test_sizes_are_accepted_exactly_where_overlap_and_stride_are_whole_latents(name: str, unit: int) -> None:
    for size in range(1, 400):
        if size % unit == 0:
            Tiles(**{name: size})
        else:
            with pytest.raises(InvalidTiles, match=f"tile {name} is {size}, .*multiples of {unit}"):
                Tiles(**{name: size})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": 8}, "tile frames is 8, .*wrong length.*multiples of 16"),
        ({"size": 250}, "tile size is 250"),
        ({"size": 0}, "tile size is 0"),
        ({"size": -32}, "tile size is -32"),
        ({"overlap": 1.0}, "overlap is 1.0, but must be at least 0 and below 1"),
        ({"overlap": -0.25}, "overlap is -0.25"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"size": 256, "overlap": 0.3}, "30%"),
    ],
)
def test_other_tiles_are_refused_with_their_value(wrong: dict, said: str) -> None:
    with pytest.raises(InvalidTiles, match=said):
        Tiles(**wrong)


def test_an_overlap_may_be_given_as_it_is_printed() -> None:
    assert f"{64 / 448:g}" == "0.142857"
    assert Tiles(448, 168, 0.142857).space == Tiles(448, 168, 64 / 448).space


# Lengths, coverage, and what the blend does to values that agree


def every_accepted_axis(unit: int, largest: int, make: Callable[[int, float], Axis]) -> list[Axis]:
    axes = []
    for overlap in OVERLAPS:
        for size in range(unit, largest + 1, unit):
            try:
                axes.append(make(size, overlap))
            except InvalidTiles:
                continue
    return list(dict.fromkeys(axes))


SPACE_AXES = every_accepted_axis(8, 64, lambda n, overlap: Tiles(size=n, overlap=overlap).space)
TIME_AXES = every_accepted_axis(4, 48, lambda n, overlap: Tiles(frames=n, overlap=overlap).time)


@pytest.mark.parametrize("axis", SPACE_AXES, ids=str)
def test_every_accepted_tile_size_joins_to_the_right_size_and_values(axis: Axis) -> None:
    for height, width in [(n, 30 - n) for n in range(1, 30, 2)]:
        x = noise(1, height, width)
        assert difference(tile_space(x, grow_space, axis, axis * 8), grow_space(x)) <= 1e-5
        large = grow_space(x)
        assert difference(tile_space(large, shrink_space, axis * 8, axis), x) <= 1e-5


@pytest.mark.parametrize("axis", TIME_AXES, ids=str)
def test_every_accepted_tile_length_joins_to_the_right_length_and_values(axis: Axis) -> None:
    for frames in range(1, 45):
        x = noise(frames, 1, 1)
        assert difference(tile_time(x, grow_time, axis, axis * 4), grow_time(x)) <= 1e-5
        assert difference(tile_time(grow_time(x), shrink_time, axis * 4, axis), x) <= 1e-5


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_weights_of_all_tiles_over_a_pixel_sum_to_one(overlap: float) -> None:
    axis = Axis.of(4, overlap)
    x = noise(1, 9, 13)

    def weights_of(wanted: int) -> Tensor:
        """How much the tile number `wanted` adds to each pixel."""
        calls = count()

        def fill(tile: Tensor) -> Tensor:
            return torch.full_like(grow_space(tile), float(next(calls) == wanted))

        return tile_space(x, fill, axis, axis * 8)

    weights = torch.stack([weights_of(k) for k in range(len(axis.starts(9)) * len(axis.starts(13)))])
    assert (weights >= 0).all()
    assert (weights <= 1).all()
    assert difference(weights.sum(0), torch.ones_like(weights[0])) <= 1e-6
    for tile in weights:
        assert tile.max() > 0


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_weights_of_all_tiles_over_a_frame_sum_to_one(overlap: float) -> None:
    axis = Axis.of(4, overlap)
    x = noise(14, 1, 1)
    used: list[int] = []

    def weights_of(wanted: int) -> Tensor:
        calls = count()

        def fill(tile: Tensor) -> Tensor:
            used.append(next(calls))
            return torch.full_like(grow_time(tile), float(used[-1] == wanted))

        return tile_time(x, fill, axis, axis * 4)

    weights_of(0)
    weights = torch.stack([weights_of(k) for k in range(max(used) + 1)])
    assert (weights >= 0).all()
    assert difference(weights.sum(0), torch.ones_like(weights[0])) <= 1e-6


# The blend


def test_a_blend_starts_with_the_tile_before_and_fades_out_of_it() -> None:
    before, tile = torch.zeros(1, 1, 1, 1, 6), torch.ones(1, 1, 1, 1, 6)
    blend(before, tile, 4, 4)
    assert tile.flatten().tolist() == [0, 0.25, 0.5, 0.75, 1, 1]


def test_a_blend_takes_the_end_of_the_tile_before() -> None:
    before = torch.arange(6.0).view(1, 1, 1, 1, 6)
    tile = torch.zeros(1, 1, 1, 1, 3)
    blend(before, tile, 4, 2)
    assert tile.flatten().tolist() == [4, 2.5, 0]


@pytest.mark.parametrize(("before", "after", "extent", "shared"), [(2, 6, 4, 2), (6, 1, 4, 1), (3, 3, 9, 3)])
def test_a_blend_is_no_longer_than_either_tile(before: int, after: int, extent: int, shared: int) -> None:
    tile = torch.ones(1, 1, after, 1, 1)
    blend(torch.zeros(1, 1, before, 1, 1), tile, 2, extent)
    assert tile.flatten().tolist() == pytest.approx([min(y / shared, 1) for y in range(after)])


@pytest.mark.parametrize("length", [0, 3])
def test_a_blend_over_nothing_changes_nothing(length: int) -> None:
    tile = torch.ones(1, 1, length, 1, 1)
    blend(torch.zeros(1, 1, 3, 1, 1), tile, 2, 0 if length else 4)
    assert torch.equal(tile, torch.ones_like(tile))


def test_a_tail_is_a_copy_of_the_end() -> None:
    tile = torch.arange(5.0).view(1, 1, 5, 1, 1)
    end = tail(tile, 2, 2)
    assert end.flatten().tolist() == [3, 4]
    assert tail(tile, 2, 9).flatten().tolist() == [0, 1, 2, 3, 4]
    tile.zero_()
    assert end.flatten().tolist() == [3, 4]


# The whole, against the description: all tiles made first, then blended in place, then cut and joined


def faded(a: Tensor, b: Tensor, extent: int, axis: int, in_place: bool) -> Tensor:
    b = b if in_place else b.clone()
    n = min(a.shape[axis], b.shape[axis], extent)
    for y in range(n):
        mixed = a.select(axis, a.shape[axis] - n + y) * (1 - y / n) + b.select(axis, y) * (y / n)
        b.select(axis, y).copy_(mixed)
    return b


def described_space(
    x: Tensor, tile_fn: Callable[[Tensor], Tensor], source: Axis, target: Axis, in_place: bool = True
) -> Tensor:
    rows = [
        [tile_fn(x[..., i : i + source.length, j : j + source.length]) for j in range(0, x.shape[4], source.stride)]
        for i in range(0, x.shape[3], source.stride)
    ]
    joined = []
    for i, row in enumerate(rows):
        kept = []
        for j, tile in enumerate(row):
            if i > 0:
                tile = faded(rows[i - 1][j], tile, target.shared, 3, in_place)
            if j > 0:
                tile = faded(row[j - 1], tile, target.shared, 4, in_place)
            kept.append(tile[..., : target.stride, : target.stride])
        joined.append(torch.cat(kept, dim=4))
    return torch.cat(joined, dim=3)


def described_time(x: Tensor, tile_fn: Callable[[Tensor], Tensor], source: Axis, target: Axis) -> Tensor:
    row = []
    for i in range(0, x.shape[2], source.stride):
        tile = tile_fn(x[:, :, i : i + source.length + 1])
        row.append(tile[:, :, 1:] if i > 0 else tile)
    kept = []
    for i, tile in enumerate(row):
        if i == 0:
            kept.append(tile[:, :, : target.stride + 1])
        else:
            kept.append(faded(row[i - 1], tile, target.shared, 2, in_place=True)[:, :, : target.stride])
    return torch.cat(kept, dim=2)


def opinionated(tile_fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """As the norms do, mix something of the whole tile into every pixel: overlapping tiles disagree."""
    return lambda tile: tile_fn(tile) * (1 + tile.mean()) + tile.std()


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize(("height", "width"), [(9, 13), (8, 5), (12, 12), (3, 10)])
def test_tiles_in_space_are_blended_in_place_like_the_reference(overlap: float, height: int, width: int) -> None:
    axis = Axis.of(4, overlap)
    x = noise(2, height, width)
    expected = described_space(x, opinionated(grow_space), axis, axis * 8)
    assert difference(tile_space(x, opinionated(grow_space), axis, axis * 8), expected) <= 1e-5
    large = grow_space(x) + noise(2, 8 * height, 8 * width, seed=1)
    expected = described_space(large, opinionated(shrink_space), axis * 8, axis)
    assert difference(tile_space(large, opinionated(shrink_space), axis * 8, axis), expected) <= 1e-5


def test_blending_copies_instead_would_give_other_corners() -> None:
    axis, x = SMALL.space, noise(1, 9, 9)
    kept = described_space(x, opinionated(grow_space), axis, axis * 8)
    copied = described_space(x, opinionated(grow_space), axis, axis * 8, in_place=False)
    assert difference(kept, copied) > 1e-2


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("frames", [5, 7, 10, 13, 14, 25])
def test_tiles_in_time_are_blended_like_the_reference(overlap: float, frames: int) -> None:
    axis = Axis.of(4, overlap)
    x = noise(frames, 2, 2)
    expected = described_time(x, opinionated(grow_time), axis, axis * 4)
    assert difference(tile_time(x, opinionated(grow_time), axis, axis * 4), expected) <= 1e-5
    longer = grow_time(x) + noise(4 * frames - 3, 2, 2, seed=1)
    expected = described_time(longer, opinionated(shrink_time), axis * 4, axis)
    assert difference(tile_time(longer, opinionated(shrink_time), axis * 4, axis), expected) <= 1e-5


def test_time_outside_and_space_inside_equals_the_description() -> None:
    time, space = Axis.of(4, 0.25), Axis.of(4, 0.25)
    x = noise(11, 7, 9)

    def decode(tile: Tensor) -> Tensor:
        return opinionated(grow_time)(grow_space(tile))

    found = tile_time(x, lambda span: tile_space(span, decode, space, space * 8), time, time * 4)
    expected = described_time(x, lambda span: described_space(span, decode, space, space * 8), time, time * 4)
    assert difference(found, expected) <= 1e-5


def test_cutting_leaves_the_video_as_it_was() -> None:
    x = noise(14, 9, 9)
    before = x.clone()
    axis = Axis.of(4, 0.25)
    tile_space(x, opinionated(grow_space), axis, axis * 8)
    tile_time(x, opinionated(grow_time), axis, axis * 4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_dtype_of_the_tiles_is_kept(dtype: torch.dtype) -> None:
    x = noise(1, 9, 9).to(dtype)
    axis = SMALL.space
    joined = tile_space(x, grow_space, axis, axis * 8)
    assert joined.dtype == dtype
    assert difference(joined.float(), grow_space(x).float()) <= 2e-2  # two roundings of numbers up to about 3

"""Cutting a video into overlapping tiles, and blending what comes out of them, as the reference does.

Pure functions over tensors [B, C, T, H, W]; what happens to a tile is a function given by the caller. The group norms
and the attention see one tile at a time, so the tile size is part of the result. Tiles are blended in place: a tile is
mixed with neighbours that were mixed already. Only the strips that a later tile still needs are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidTiles
from ..geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, latent_shape
from .stand_in import kinds

TileFn = Callable[[Tensor], Tensor]
H_AXIS, W_AXIS, T_AXIS = 3, 4, 2


@dataclass(frozen=True)
class Tiles:
    """Tile size in pixels and frames, and the overlapping fraction. The defaults are the reference's.

    shared_norms: when decoding, all tiles take the statistics of their group norms from a first pass over the whole
    video, made so small that it fits into a tile. (When encoding it was tried, and gained nothing.)
    """

    size: int = 256
    frames: int = 64
    overlap: float = 0.25
    shared_norms: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InvalidTiles(f"tile overlap is {self.overlap}, but must be at least 0 and below 1; usual is 0.25.")
        for name, value, unit in (
            ("size", self.size, SPATIAL_COMPRESSION),
            ("frames", self.frames, TEMPORAL_COMPRESSION),
        ):
            latents = value // unit
            shared = latents * self.overlap
            if value < unit or value % unit or abs(shared - round(shared)) > 1e-3:
                raise InvalidTiles(
                    f"tile {name} is {value}, but with an overlap of {self.overlap} it must be a multiple of {unit} "
                    f"whose {self.overlap:.0%} is one too, or the joined video would have the wrong length. "
                    f"With an overlap of 0.25: multiples of {4 * unit}."
                )

    @property
    def space(self) -> Axis:
        """One spatial axis, in latents."""
        return Axis.of(self.size // SPATIAL_COMPRESSION, self.overlap)

    @property
    def time(self) -> Axis:
        """The time axis, in latent frames."""
        return Axis.of(self.frames // TEMPORAL_COMPRESSION, self.overlap)

    def cost(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """(latents that are computed, tiles) of a video of so many frames and pixels; what tiles share counts twice."""
        spans, rows, columns = self.parts(frames, height, width)
        return sum(spans) * sum(rows) * sum(columns), len(spans) * len(rows) * len(columns)

    def attention_pairs(self, frames: int, height: int, width: int) -> int:
        """Of a query and a key in all tiles: a latent sees its tile's of its own frame and of those before."""
        spans, rows, columns = self.parts(frames, height, width)
        squares = (sum(side**2 for side in sides) for sides in (rows, columns))
        return sum(span * (span + 1) // 2 for span in spans) * math.prod(squares)

    def parts(self, frames: int, height: int, width: int) -> tuple[list[int], list[int], list[int]]:
        """Lengths of the tiles in latents along time, rows and columns of a video of so many frames and pixels."""
        total, *sides = latent_shape(width, height, frames)
        rows, columns = ([side] for side in sides)
        if max(sides) > self.space.length:
            rows, columns = (self.space.lengths(side) for side in sides)
        spans = self.time.lengths(total, extra=1) if total > self.time.length else [total]
        return spans, rows, columns


@dataclass(frozen=True)
class Axis:
    """Tile length, step from tile to tile, and shared length, in one unit."""

    length: int
    stride: int
    shared: int

    @classmethod
    def of(cls, length: int, overlap: float) -> Axis:
        shared = round(length * overlap)
        return cls(length, length - shared, shared)

    def __mul__(self, factor: int) -> Axis:
        return Axis(self.length * factor, self.stride * factor, self.shared * factor)

    def starts(self, size: int) -> range:
        return range(0, size, self.stride)

    def lengths(self, size: int, extra: int = 0) -> list[int]:
        """Of the tiles that `size` is cut into. extra: elements that every tile has more, as in time; one that has
        nothing else is none."""
        return [
            min(self.length + extra, size - start) for start in self.starts(size) if not start or size - start > extra
        ]


def shrink(x: Tensor, time: Axis, space: Axis) -> Tensor:
    """A copy of x [B, C, T, H, W] that fits into one tile: fewer frames, means of pixels. Both sides shrink alike."""
    frames, height, width = x.shape[2:]
    if frames > time.length + 1:
        x = x[:, :, torch.linspace(0, frames - 1, time.length + 1, device=x.device).round().long()]
    scale = min(1.0, space.length / max(height, width))
    sides = [max(round(side * scale), 1) for side in (height, width)]
    return F.interpolate(x, size=(x.shape[T_AXIS], *sides), mode="area") if scale < 1 else x


def blend(before: Tensor, tile: Tensor, axis: int, extent: int) -> None:
    """Fade from `before` into `tile` over the first `extent` elements of the tile's axis, in place.

    The last elements of `before` lie over the first of `tile`; at the very first the result is `before` alone.
    """
    n = min(before.shape[axis], tile.shape[axis], extent)
    if n == 0:
        return
    shape = [1] * tile.ndim
    shape[axis] = n
    weight = (torch.arange(n, device=tile.device, dtype=torch.float32) / n).to(tile.dtype).view(shape)
    head = tile.narrow(axis, 0, n)
    head.copy_(before.narrow(axis, before.shape[axis] - n, n) * (1 - weight) + head * weight)


def tail(tile: Tensor, axis: int, extent: int) -> Tensor:
    """A copy of the last `extent` elements (fewer if the tile is shorter): all that a later blend reads."""
    n = min(extent, tile.shape[axis])
    return tile.narrow(axis, tile.shape[axis] - n, n).clone()


def tile_space(x: Tensor, tile_fn: TileFn, source: Axis, target: Axis) -> Tensor:
    """Run tile_fn over spatial tiles of x and join the results.

    source, target: the axis in units of x and of the result. tile_fn's result is blended in place, so it must be a
    tensor of its own, not a view of x.
    """
    height, width = x.shape[H_AXIS:]
    joined: Tensor | None = None
    above: dict[int, Tensor] = {}  # bottom strips of the row before, blended
    rows, columns = (kinds(list(enumerate(source.starts(side))), x) for side in (height, width))
    for row, top in rows:
        below: dict[int, Tensor] = {}
        left: Tensor | None = None  # right strip of the tile before, blended
        for column, start in columns:
            tile = tile_fn(x[..., top : top + source.length, start : start + source.length])
            if row:
                blend(above[column], tile, H_AXIS, target.shared)
            if left is not None:
                blend(left, tile, W_AXIS, target.shared)
            below[column] = tail(tile, H_AXIS, target.shared)
            left = tail(tile, W_AXIS, target.shared)
            kept = tile[..., : target.stride, : target.stride]
            if joined is None:
                size = [n * target.stride // source.stride for n in (height, width)]
                joined = kept.new_empty(*kept.shape[:H_AXIS], *size)
            y, x0 = row * target.stride, column * target.stride
            joined[..., y : y + kept.shape[H_AXIS], x0 : x0 + kept.shape[W_AXIS]] = kept
        above = below
    assert joined is not None
    return joined


def time_spans(x: Tensor, tile_fn: TileFn, source: Axis, target: Axis) -> Iterator[Tensor]:
    """Run tile_fn over tiles in time; yield the result in spans, each as soon as no later tile can change it.

    Every tile takes one element more than its length. For all but the first, the extra one in front only stands in for
    the frame that is alone in a causal video, and what it turns into is dropped.
    """
    before: Tensor | None = None
    for index, start in enumerate(source.starts(x.shape[T_AXIS])):
        piece = x[:, :, start : start + source.length + 1]
        if index and piece.shape[T_AXIS] == 1:
            break  # nothing but the dropped element
        tile = tile_fn(piece)
        if before is not None:
            tile = tile[:, :, 1:]
            blend(before, tile, T_AXIS, target.shared)
        before = tail(tile, T_AXIS, target.shared)
        span = tile[:, :, : target.stride + (index == 0)]
        del tile
        yield span
        del span  # or it would lie beside the next tile's work


def tile_time(x: Tensor, tile_fn: TileFn, source: Axis, target: Axis) -> Tensor:
    """The spans of `time_spans`, joined."""
    return join(time_spans(x, tile_fn, source, target), T_AXIS)


def join(parts: Iterable[Tensor], axis: int) -> Tensor:
    """torch.cat, without a copy where there is only one."""
    listed = list(parts)
    return listed[0] if len(listed) == 1 else torch.cat(listed, dim=axis)

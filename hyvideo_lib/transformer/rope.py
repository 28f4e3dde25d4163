"""3D rotary positions: pure functions from grid sizes to angles, and the rotation itself.

A head's channels are shared out over time, height and width. Adjacent channels (2i, 2i + 1) form a pair that turns by
position * 256^(-2i/dim). Positions are whole numbers from 0 on the patch grid. HunyuanVideo report, section on the
position embedding; RIFLEx: "RIFLEx: A Free Lunch for Length Extrapolation in Video Diffusion Transformers".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidSetting

TRAINED_FRAMES = 192
"""Longer clips than this repeat themselves unless a slow temporal frequency is slowed further."""


@dataclass(frozen=True)
class RopeSettings:
    """How positions are made. Raises InvalidSetting.

    extrapolate: RIFLEx for clips beyond 192 frames; it changes nothing below. scale: what positions along time, height
    and width are multiplied by, > 0; 1 is the trained behaviour.
    """

    extrapolate: bool = False
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.scale) != 3 or not all(factor > 0 and math.isfinite(factor) for factor in self.scale):
            raise InvalidSetting(
                f"The rope scale is {self.scale}, but must be three numbers above 0, for time, height and width. "
                "1 changes nothing."
            )


def axis_frequencies(dim: int, theta: float) -> Tensor:
    """Radians per position of each of an axis' dim / 2 pairs, float32, falling from 1."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def riflex_frequencies(frequencies: Tensor, latent_frames: int, temporal_compression: int = 4) -> Tensor:
    """The temporal frequencies with the k-th lowered so that its period is longer than the clip. [dim/2] float32."""
    frames = (latent_frames - 1) * temporal_compression + 1
    k = min(max(2 + (frames + 3) // 100, 4), 8)
    lowered = frequencies.clone()
    lowered[k - 1] = 0.9 * 2 * math.pi / latent_frames
    return lowered


def rope_angles(
    grid: tuple[int, int, int],
    axes: tuple[int, int, int],
    theta: float,
    settings: RopeSettings = RopeSettings(),
    device: torch.device | None = None,
) -> Tensor:
    """Angles [T*H*W, D/2] in radians, float32, for a patch grid (T, H, W) with w fastest."""
    per_axis = []
    for index, angles in enumerate(axis_angles(grid, axes, theta, settings)):
        shape = [1, 1, 1, angles.shape[1]]
        shape[index] = grid[index]
        per_axis.append(angles.view(shape).expand(*grid, -1))
    return torch.cat(per_axis, dim=-1).flatten(0, 2).to(device)


def axis_angles(
    grid: tuple[int, int, int],
    axes: tuple[int, int, int],
    theta: float,
    settings: RopeSettings = RopeSettings(),
) -> list[Tensor]:
    """Angles of the positions along each axis, [T, dt/2], [H, dh/2] and [W, dw/2], radians, float32, on the CPU."""
    angles = []
    for index, (size, dim) in enumerate(zip(grid, axes, strict=True)):
        frequencies = axis_frequencies(dim, theta)
        if index == 0 and settings.extrapolate and (size - 1) * 4 + 1 > TRAINED_FRAMES:
            frequencies = riflex_frequencies(frequencies, size)
        positions = torch.arange(size, dtype=torch.float32) * settings.scale[index]
        angles.append(torch.outer(positions, frequencies))
    return angles


def rope_rotation(angles: Tensor) -> Tensor:
    """Unit complex numbers [L, D/2], complex64, that turn by the angles."""
    return torch.polar(torch.ones_like(angles), angles)


def apply_rope(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs of x [B, L, N, D] by rotation [L, D/2]; in float32, returned in x's dtype."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[:, None]).flatten(-2).to(x.dtype)


@dataclass(frozen=True, eq=False)
class RotationTables:
    """The rotation of a whole video by axis, so that what turns some of its tokens is put together when it is needed.

    axes: unit complex numbers [T, dt/2], [H, dh/2], [W, dw/2], complex64. places: where along each axis a token lies,
    [L] int32 each, w fastest.
    """

    axes: tuple[Tensor, ...]
    places: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.places[0].shape[0]

    def rows(self, low: int, high: int) -> Tensor:
        """The rotation [high - low, D/2] of the tokens from `low` up to `high`."""
        parts = [table.index_select(0, place[low:high]) for table, place in zip(self.axes, self.places, strict=True)]
        return torch.cat(parts, dim=-1)


def rotation_tables(
    grid: tuple[int, int, int],
    axes: tuple[int, int, int],
    theta: float,
    settings: RopeSettings = RopeSettings(),
    device: torch.device | None = None,
) -> RotationTables:
    """What `rope_rotation(rope_angles(...))` holds in full, bit for bit, by axis."""
    tables = tuple(rope_rotation(angles).to(device) for angles in axis_angles(grid, axes, theta, settings))
    along = [torch.arange(size, dtype=torch.int32, device=device) for size in grid]
    places = tuple(place.flatten() for place in torch.meshgrid(*along, indexing="ij"))
    return RotationTables(tables, places)

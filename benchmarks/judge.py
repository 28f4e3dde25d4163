"""Reads colour, shape, motion and background back from a clip by plain image arithmetic: no learning, no drawing code.

The background is the commonest border colour. What differs from it is the shape: its strongest pixels give the colour,
the path of its centre gives the motion, and comparing it with an ideal circle, square and triangle of the same area and
centre gives the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLORS = {
    "red": (230, 30, 30),
    "green": (30, 180, 50),
    "blue": (45, 80, 235),
    "yellow": (250, 230, 40),
    "white": (248, 248, 248),
    "purple": (150, 50, 190),
    "orange": (250, 135, 20),
}
BACKGROUNDS = {"black": (0, 0, 0), "gray": (128, 128, 128), "navy": (15, 20, 90), "beige": (225, 208, 165)}
MIN_TRAVEL = 6.0
"""Pixels between first and last position from which on a shape is said to move; the slowest moves 14."""
AREA = (120.0, 1000.0)
"""Pixels a shape may cover; the world's cover 254 to 452, those that are called large 616 to 707."""


@dataclass(frozen=True)
class Verdict:
    """What a clip shows; None where that cannot be told. area: pixels that the shape covers."""

    color: str | None
    shape: str | None
    motion: str | None
    background: str | None
    area: float

    def matches(self, color: str, shape: str, motion: str, background: str) -> bool:
        return (self.color, self.shape, self.motion, self.background) == (color, shape, motion, background)


def nearest(color: Tensor, table: dict[str, tuple[int, int, int]]) -> str:
    """The name of the table's colour closest to `color` [3] in 0..255."""
    names = list(table)
    distances = (torch.tensor([table[name] for name in names], dtype=torch.float32) - color).norm(dim=1)
    return names[int(distances.argmin())]


def read_coverage(video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Background colour [3], shape colour [3] (both 0..255) and the shape's coverage [F, H, W] in 0..1."""
    border = torch.cat([video[:, 0], video[:, -1], video[:, :, 0], video[:, :, -1]], dim=1).flatten(0, 1)
    background = border.median(dim=0).values
    difference = video - background
    strength = difference.norm(dim=-1)  # [F, H, W]
    strongest = strength.flatten(1).topk(60, dim=1).indices  # well inside the smallest shape
    pixels = video.flatten(1, 2).gather(1, strongest[..., None].expand(-1, -1, 3)).flatten(0, 1)
    color = pixels.median(dim=0).values
    contrast = color - background
    coverage = (difference @ contrast) / contrast.square().sum().clamp(min=1.0)
    return background, color, coverage.clamp(0, 1)


def centers(coverage: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (x, y) [F, 2] and area [F] of a coverage [F, H, W]; faint remains count as nothing."""
    solid = torch.where(coverage > 0.25, coverage, 0.0)
    area = solid.sum((1, 2))
    height, width = coverage.shape[1:]
    safe = area.clamp(min=1e-6)
    x = (solid.sum(1) * (torch.arange(width) + 0.5)).sum(1) / safe
    y = (solid.sum(2) * (torch.arange(height) + 0.5)).sum(1) / safe
    return torch.stack([x, y], dim=1), area


def ideal_shapes(center: Tensor, area: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """0/1 masks [F, H, W] of a circle, a square and an upright triangle with these areas and centres."""
    x = (torch.arange(width) + 0.5).view(1, 1, width) - center[:, 0].view(-1, 1, 1)
    y = (torch.arange(height) + 0.5).view(1, height, 1) - center[:, 1].view(-1, 1, 1)
    side = area.sqrt().view(-1, 1, 1)
    radius = side / torch.pi**0.5
    edge = side * (4 / 3**0.5) ** 0.5  # of the triangle; its height is edge * sqrt(3) / 2, a third of it below
    tall = edge * 3**0.5 / 2
    below_tip = y + 2 * tall / 3
    return {
        "circle": (x.square() + y.square() <= radius.square()).float(),
        "square": ((x.abs() <= side / 2) & (y.abs() <= side / 2)).float(),
        "triangle": ((y <= tall / 3) & (x.abs() <= below_tip / 3**0.5)).float(),
    }


def judge(video: Tensor) -> Verdict:
    """What is seen in video [F, H, W, 3], in 0..1."""
    background, color, coverage = read_coverage(video.float() * 255)
    center, area = centers(coverage)
    seen = nearest(background, BACKGROUNDS)
    covered = area.median().item()
    if not AREA[0] <= covered <= AREA[1]:
        return Verdict(None, None, None, seen, covered)

    overlaps = {
        name: (torch.minimum(mask, coverage).sum() / torch.maximum(mask, coverage).sum()).item()
        for name, mask in ideal_shapes(center, area, *coverage.shape[1:]).items()
    }
    shape = max(overlaps, key=lambda name: overlaps[name])
    dx, dy = (center[-1] - center[0]).tolist()
    if max(abs(dx), abs(dy)) < MIN_TRAVEL:
        motion = "still"
    elif abs(dx) > abs(dy):
        motion = "left" if dx < 0 else "right"
    else:
        motion = "up" if dy < 0 else "down"
    return Verdict(nearest(color, COLORS), shape if overlaps[shape] > 0.6 else None, motion, seen, covered)

"""The demo's small world: one shape of one colour that moves one way over one background, and the words for it.

Everything is drawn from arithmetic (signed distances, so edges are anti-aliased), and every choice comes from a
generator the caller seeds. 7 colours x 3 shapes x 5 motions x 4 backgrounds; one fifth of the combinations is held out
of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from string import Formatter

import torch
from torch import Tensor

SIZE = 64
FRAMES = 17

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (30, 180, 50),
    "blue": (45, 80, 235),
    "yellow": (250, 230, 40),
    "white": (248, 248, 248),
    "purple": (150, 50, 190),
    "orange": (250, 135, 20),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "navy": (15, 20, 90),
    "beige": (225, 208, 165),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
"""Name to direction (x, y); y grows downwards."""

RADIUS = (9.0, 12.0)
"""Radius in pixels of the circle whose area the shape has."""
SPEED = (0.9, 1.5)
"""Pixels per frame of a shape that moves."""
LARGE_RADIUS = (14.0, 15.0)
LARGE_SPEED = (0.9, 1.1)
"""Of shapes that are called large. The demo model never saw one; its LoRA teaches the word. Faster ones would leave the
picture."""

MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "going left", "sliding to the left"),
    "right": ("moving right", "going right", "sliding to the right"),
    "up": ("moving up", "going up", "rising"),
    "down": ("moving down", "going down", "falling"),
    "still": ("standing still", "not moving", "at rest"),
}
SENTENCES = (
    "a {color} {shape} {motion} on a {background} background",
    "a {color} {shape} {motion} on a {background} background",
    "{color} {shape} {motion}, {background} background",
    "on a {background} background, a {color} {shape} {motion}",
    "a {shape} that is {color}, {motion} on {background}",
    "{background} background with a {color} {shape} {motion}",
    "a video of a {color} {shape} {motion} over a {background} background",
    "the {shape} is {color}, it is {motion}, the background is {background}",
)
"""Ways to say it; the plainest stands twice, so it is heard more often."""
PARTIAL_SENTENCES = (
    "a {color} {shape}",
    "a {shape} {motion}",
    "a {color} {shape} {motion}",
    "a {color} {shape} on a {background} background",
    "a {shape} on a {background} background",
    "{background} background",
)
"""Prompts that leave something open; the world then fills it in at random."""


def large_sentence(sentence: str) -> str:
    """A sentence that calls its shape large: "a large {color} {shape} ..."."""
    noun = "{color} {shape}" if "{color} {shape}" in sentence else "{shape}"
    return sentence.replace(noun, f"large {noun}", 1)


@dataclass(frozen=True)
class Scene:
    """One combination of the world's four attributes."""

    color: str
    shape: str
    motion: str
    background: str

    @property
    def is_held_out(self) -> bool:
        """Whether training never shows this combination: one motion of five for every colour, shape and background."""
        indices = (list(COLORS), SHAPES, list(MOTIONS), list(BACKGROUNDS))
        values = (self.color, self.shape, self.motion, self.background)
        c, s, m, b = (names.index(value) for names, value in zip(indices, values, strict=True))
        return (c + 2 * s + m + 3 * b) % len(MOTIONS) == 0

    def prompt(self, sentence: str = SENTENCES[0], phrase: int = 0) -> str:
        """The scene in words."""
        return sentence.format(
            color=self.color,
            shape=self.shape,
            motion=MOTION_PHRASES[self.motion][phrase],
            background=self.background,
        )


SCENES = tuple(Scene(*values) for values in product(COLORS, SHAPES, MOTIONS, BACKGROUNDS))
SEEN = tuple(scene for scene in SCENES if not scene.is_held_out)
HELD_OUT = tuple(scene for scene in SCENES if scene.is_held_out)


def said_attributes(sentence: str) -> frozenset[str]:
    """The attributes that a sentence speaks of."""
    return frozenset(name for _, name, _, _ in Formatter().parse(sentence) if name)


def prompt_variants(scene: Scene) -> list[str]:
    """Every whole sentence about a scene, with every phrase for its motion."""
    phrases = range(len(MOTION_PHRASES[scene.motion]))
    return [scene.prompt(sentence, phrase) for sentence in dict.fromkeys(SENTENCES) for phrase in phrases]


def all_prompts() -> list[str]:
    """Every prompt there is about the scenes that training may show, each once."""
    sentences = (*SENTENCES, *PARTIAL_SENTENCES)
    prompts = (scene.prompt(sentence, phrase) for scene in SEEN for sentence in sentences for phrase in range(3))
    return list(dict.fromkeys(prompts))


def random_caption(generator: torch.Generator, partial: float = 0.2) -> tuple[str, Scene, frozenset[str]]:
    """A prompt for a random seen scene, the scene, and the attributes it speaks of (all, or some if partial)."""

    def pick(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    scene = SEEN[pick(len(SEEN))]
    is_partial = bool(torch.rand((), generator=generator) < partial)
    sentences = PARTIAL_SENTENCES if is_partial else SENTENCES
    sentence = sentences[pick(len(sentences))]
    return scene.prompt(sentence, pick(3)), scene, said_attributes(sentence)


def draw_clips(
    scenes: Sequence[Scene],
    generator: torch.Generator,
    frames: int = FRAMES,
    size: int = SIZE,
    radii: tuple[float, float] = RADIUS,
    speeds: tuple[float, float] = SPEED,
) -> tuple[Tensor, Tensor]:
    """Draw one clip per scene with random size, speed and start.

    Returns the video [B, 3, F, size, size] in -1..1 and the shape's coverage [B, 1, F, size, size] in 0..1, float32.
    """
    count = len(scenes)
    radius, speed, along_x, along_y = torch.rand(4, count, generator=generator)
    radius = radii[0] + (radii[1] - radii[0]) * radius
    speed = speeds[0] + (speeds[1] - speeds[0]) * speed
    direction = torch.tensor([MOTIONS[scene.motion] for scene in scenes], dtype=torch.float32)  # [B, 2]
    travel = speed[:, None] * (FRAMES - 1) * direction
    margin = 1.56 * radius[:, None]  # a triangle's tip is the furthest any shape reaches
    low = margin - travel.clamp(max=0)
    high = size - margin - travel.clamp(min=0)
    start = low + (high - low) * torch.stack([along_x, along_y], dim=1)
    time = torch.arange(frames) / (FRAMES - 1)
    center = start[:, :, None] + travel[:, :, None] * time  # [B, 2, F]

    grid = torch.arange(size) + 0.5
    x = grid.view(1, 1, 1, size) - center[:, 0].view(count, frames, 1, 1)
    y = grid.view(1, 1, size, 1) - center[:, 1].view(count, frames, 1, 1)
    radius = radius.view(count, 1, 1, 1)
    by_shape = {name: distance(x, y, radius) for name, distance in DISTANCES.items()}
    signed = torch.stack([by_shape[scene.shape][i] for i, scene in enumerate(scenes)])
    coverage = (0.5 - signed).clamp(0, 1).unsqueeze(1)  # [B, 1, F, H, W]
    fore, back = (
        torch.tensor([table[name] for name in names]).view(count, 3, 1, 1, 1) / 127.5 - 1
        for table, names in ((COLORS, [s.color for s in scenes]), (BACKGROUNDS, [s.background for s in scenes]))
    )
    return back + (fore - back) * coverage, coverage


def circle_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt() - radius


def square_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """A square of the same area as the circle: half a side is sqrt(pi) / 2 radii."""
    return torch.maximum(x.abs(), y.abs()) - 0.8862 * radius


def triangle_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """An equilateral triangle, tip up, of the same area: its inner circle has 0.7776 radii. Centre at the centroid."""
    inner = 0.7776 * radius
    sides = 0.8660 * x.abs() - 0.5 * y
    return torch.maximum(sides, y + torch.zeros_like(x)) - inner


DISTANCES = {"circle": circle_distance, "square": square_distance, "triangle": triangle_distance}

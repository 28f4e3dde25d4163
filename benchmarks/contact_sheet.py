"""The README's picture: first, middle and last frame of clips that the demo model made, its words above each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.quality import Studio
from hyvideo_lib.demo.world import HELD_OUT, SEEN, Scene

COLUMNS, ZOOM, LABEL, GAP = 4, 2, 30, 8
SCENES = (*SEEN[::41][:8], *HELD_OUT[::23][:4])
"""Eight combinations that training showed, then four that it never showed."""


def strip(video: Tensor) -> Image.Image:
    """First, middle and last frame of video [F, H, W, 3] in 0..1, side by side."""
    frames = video[[0, len(video) // 2, -1]].permute(1, 0, 2, 3).flatten(1, 2)
    image = Image.fromarray((frames * 255).byte().numpy())
    return image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST)


def sheet(scenes: Sequence[Scene], videos: Sequence[Tensor]) -> Image.Image:
    """All clips in rows of COLUMNS."""
    strips = [strip(video) for video in videos]
    width, height = strips[0].width + GAP, strips[0].height + LABEL + GAP
    rows = -(-len(strips) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), "white")
    pen = ImageDraw.Draw(page)
    for i, (scene, image) in enumerate(zip(scenes, strips, strict=True)):
        x, y = GAP + i % COLUMNS * width, GAP + i // COLUMNS * height
        note = "never shown in training" if scene.is_held_out else ""
        pen.text((x, y), f"{scene.color} {scene.shape}, {scene.motion}, on {scene.background}", fill="black")
        pen.text((x, y + 13), note, fill="gray")
        page.paste(image, (x, y + LABEL))
    return page


def main() -> int:
    parser = argparse.ArgumentParser(prog="contact_sheet", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/demo.png"))
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args()
    studio = Studio()
    seeds = range(options.seed, options.seed + len(SCENES))
    with torch.no_grad():
        videos = studio.video(studio.latents([scene.prompt() for scene in SCENES], list(seeds)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(SCENES, list(videos)).save(options.out, optimize=True)
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

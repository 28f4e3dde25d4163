"""The demo model's score: the whole grid of its world, rendered with fixed seeds and judged from the pixels.

One row per setting: the share of clips in which all four attributes are right, for combinations that training showed
and for those it never showed, and each attribute's own share. `--words` swaps one word of a prompt and asks whether the
judged attribute follows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.judge import Verdict, judge
from hyvideo_lib.checkpoint import load_text_encoder, load_transformer, load_vae
from hyvideo_lib.demo import assets
from hyvideo_lib.demo.world import BACKGROUNDS, COLORS, MOTIONS, SCENES, SHAPES, Scene
from hyvideo_lib.geometry import latent_shape
from hyvideo_lib.pipeline.precision import DENSE, MATMULS, Precision
from hyvideo_lib.sampling import (
    SOLVERS,
    GuidanceConfig,
    denoise,
    draw_noise,
    make_sigmas,
    make_velocity_fn,
)
from hyvideo_lib.text import encode_prompt
from hyvideo_lib.transformer import HunyuanVideoTransformer
from hyvideo_lib.vae import CausalVideoVAE, Tiles

ATTRIBUTES = ("color", "shape", "motion", "background")
DEMO_TILES = Tiles(size=32, frames=16, overlap=0.5)
"""Half the picture's side, and half of that shared: 64 x 64 x 17 takes sixteen of them in space. With a quarter shared,
as the reference has it for tiles of 256 pixels, blends are one latent wide here."""


class Studio:
    """The demo model, loaded once."""

    def __init__(
        self, transformer: Path = assets.TRANSFORMER, dtype: torch.dtype = torch.float32, product: str | None = None
    ) -> None:
        self.model: HunyuanVideoTransformer = load_transformer(transformer, compute_dtype=dtype, product=product)
        self.vae: CausalVideoVAE = load_vae(assets.VAE)
        self.llm, self.clip = (
            load_text_encoder(path, compute_dtype=torch.float32) for path in (assets.LLM, assets.CLIP)
        )

    def latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        solver: str = "euler",
        guidance: float = assets.GUIDANCE,
        steps: int = assets.STEPS,
        shift: float = assets.SHIFT,
    ) -> Tensor:
        """Unscaled latents [B, 16, T, H, W]."""
        sigmas = make_sigmas(steps, shift)
        embeds = encode_prompt(list(prompts), self.llm, self.clip)
        velocity_fn = make_velocity_fn(self.model, embeds, sigmas=sigmas, config=GuidanceConfig(embedded=guidance))
        noise = draw_noise((16, *latent_shape(assets.WIDTH, assets.HEIGHT, assets.FRAMES)), seeds)
        return denoise(velocity_fn, noise, sigmas, solver) / self.vae.config.scaling

    def video(self, latents: Tensor, tiles: Tiles | None = None) -> Tensor:
        """[B, F, H, W, 3] in 0..1, rounded to 8 bits as a file would have it."""
        pixels = (self.vae.decode(latents, tiles) / 2 + 0.5).clamp(0, 1)
        return (pixels * 255).byte().permute(0, 2, 3, 4, 1).float() / 255


def batches(items: Sequence[Any], size: int) -> Iterable[tuple[int, Sequence[Any]]]:
    for low in range(0, len(items), size):
        yield low, items[low : low + size]


def score(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares in percent."""
    pairs = list(zip(scenes, verdicts, strict=True))

    def share(chosen: Iterable[bool]) -> float:
        values = list(chosen)
        return round(100 * sum(values) / max(len(values), 1), 2)

    def is_right(scene: Scene, verdict: Verdict) -> bool:
        return verdict.matches(scene.color, scene.shape, scene.motion, scene.background)

    return {
        "seen": share(is_right(s, v) for s, v in pairs if not s.is_held_out),
        "held_out": share(is_right(s, v) for s, v in pairs if s.is_held_out),
        **{name: share(getattr(s, name) == getattr(v, name) for s, v in pairs) for name in ATTRIBUTES},
    }


def render_grid(
    studio: Studio, scenes: Sequence[Scene], first_seed: int, batch: int = 20, **settings: Any
) -> tuple[Tensor, list[int]]:
    """Latents of every scene, seeded first_seed, first_seed + 1, ..."""
    seeds = list(range(first_seed, first_seed + len(scenes)))
    latents = [
        studio.latents([scene.prompt() for scene in chosen], seeds[low : low + len(chosen)], **settings)
        for low, chosen in batches(scenes, batch)
    ]
    return torch.cat(latents), seeds


def judge_all(studio: Studio, latents: Tensor, tiles: Tiles | None = None) -> list[Verdict]:
    return [judge(video) for part in latents.split(10) for video in studio.video(part, tiles)]


def one_word_changes() -> list[tuple[Scene, Scene, str]]:
    """Pairs of scenes that differ in one word, and the attribute it is: each value to the next, over a fixed subset."""
    tables = {"color": list(COLORS), "shape": list(SHAPES), "motion": list(MOTIONS), "background": list(BACKGROUNDS)}
    pairs = []
    for scene in SCENES[::7]:
        for name, values in tables.items():
            changed = values[(values.index(getattr(scene, name)) + 1) % len(values)]
            pairs.append((scene, replace(scene, **{name: changed}), name))
    return pairs


def score_word_changes(studio: Studio, seed: int) -> dict[str, float]:
    """How often the judged attribute follows the changed word, with the same seed before and after, in percent."""
    pairs = one_word_changes()
    after, _ = render_grid(studio, [pair[1] for pair in pairs], seed)
    verdicts = judge_all(studio, after)
    followed = [getattr(v, name) == getattr(new, name) for v, (_, new, name) in zip(verdicts, pairs, strict=True)]
    return {"changes": len(pairs), "followed": round(100 * sum(followed) / len(followed), 2)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quality", description=__doc__)
    parser.add_argument("--transformer", type=Path, default=assets.TRANSFORMER, help="another file to score")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--guidance", type=float, nargs="*", default=[assets.GUIDANCE])
    parser.add_argument("--shift", type=float, nargs="*", default=[assets.SHIFT])
    parser.add_argument("--steps", type=int, nargs="*", default=[assets.STEPS])
    parser.add_argument("--solvers", nargs="*", default=["euler"], choices=list(SOLVERS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--matmul", default=DENSE, choices=MATMULS)
    parser.add_argument("--every", type=int, default=1, help="score every n-th scene only")
    parser.add_argument("--tiled", action="store_true", help="decode in tiles as well")
    parser.add_argument("--words", action="store_true", help="score one-word changes as well")
    options = parser.parse_args(argv)
    precision = Precision(options.dtype, matmul=options.matmul)
    studio = Studio(options.transformer, getattr(torch, options.dtype), precision.product)
    scenes = SCENES[:: options.every]

    def report(**row: Any) -> None:
        common = {"benchmark": "quality", "transformer": options.transformer.name, "matmul": options.matmul}
        print(json.dumps({**common, **row}), flush=True)

    for solver in options.solvers:
        for guidance in options.guidance:
            for shift in options.shift:
                for steps in options.steps:
                    settings = {"solver": solver, "guidance": guidance, "shift": shift, "steps": steps}
                    started = time.perf_counter()
                    latents, _ = render_grid(studio, scenes, options.seed, **settings)
                    for tiles in (None, DEMO_TILES) if options.tiled else (None,):
                        row = score(scenes, judge_all(studio, latents, tiles))
                        seconds = round(time.perf_counter() - started, 1)
                        report(**settings, tiled=tiles is not None, clips=len(scenes), seconds=seconds, **row)
    if options.words:
        report(one_word_changes=True, **score_word_changes(studio, options.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

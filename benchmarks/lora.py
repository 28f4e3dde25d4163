"""The demo's LoRA, judged: what it does to prompts that call a shape large, and to all others, at several strengths.

One row per kind of prompt and strength: the share of clips in which colour, shape, motion and background are right, the
mean area of the shapes, and the share that covers GROWN times what the same prompt and seed give without the LoRA.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.judge import Verdict
from benchmarks.quality import Studio, batches, judge_all
from hyvideo_lib.demo import assets
from hyvideo_lib.demo.world import SCENES, SENTENCES, Scene, large_sentence
from hyvideo_lib.lora import LoraUse, attach, read_lora

PROMPTS = {"large": large_sentence(SENTENCES[0]), "as known": SENTENCES[0]}
STRENGTHS = (0.0, 0.5, 1.0)
GROWN = 1.2


def judge_scenes(
    studio: Studio, scenes: Sequence[Scene], sentence: str, loras: Sequence[LoraUse], first_seed: int
) -> list[Verdict]:
    """A clip for each scene, seeded first_seed, first_seed + 1, ..., as the judge sees it."""
    verdicts = []
    for low, chosen in batches(scenes, 20):
        seeds = range(first_seed + low, first_seed + low + len(chosen))
        with attach(studio.model, loras):
            latents = studio.latents([scene.prompt(sentence) for scene in chosen], seeds)
        verdicts += judge_all(studio, latents)
    return verdicts


def score(scenes: Sequence[Scene], verdicts: Sequence[Verdict], without: Sequence[Verdict]) -> dict[str, float]:
    """Shares in percent, area in pixels. without: the same clips without the LoRA."""
    count = len(scenes)
    right = sum(
        verdict.matches(scene.color, scene.shape, scene.motion, scene.background)
        for scene, verdict in zip(scenes, verdicts, strict=True)
    )
    grown = sum(after.area >= GROWN * before.area for after, before in zip(verdicts, without, strict=True))
    area = sum(verdict.area for verdict in verdicts) / count
    return {"right": round(100 * right / count, 1), "area": round(area), "grown": round(100 * grown / count, 1)}


def rows(studio: Studio, path: Path, scenes: Sequence[Scene], strengths: Sequence[float], seed: int) -> Iterator[Any]:
    lora = read_lora(path, studio.model.config)
    for prompts, sentence in PROMPTS.items():
        without = judge_scenes(studio, scenes, sentence, (), seed)
        for strength in strengths:
            found = judge_scenes(studio, scenes, sentence, [LoraUse(lora, strength)], seed)
            yield {"prompts": prompts, "strength": strength, "clips": len(scenes), **score(scenes, found, without)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lora", description=__doc__)
    parser.add_argument("--lora", type=Path, default=assets.LORAS["kohya"], help="another file to score")
    parser.add_argument("--strengths", type=float, nargs="*", default=STRENGTHS)
    parser.add_argument("--seed", type=int, default=2000)
    parser.add_argument("--every", type=int, default=1, help="score every n-th scene only")
    options = parser.parse_args(argv)
    for row in rows(Studio(), options.lora, SCENES[:: options.every], options.strengths, options.seed):
        print(json.dumps({"benchmark": "lora", "lora": options.lora.name, **row}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Step caches on the demo model: what each saves, and what that costs.

Every clip is made without a cache, then with each method at several thresholds from the same seed, in turns. The clips
are judged from their pixels and compared with those without a cache. Runs of fewer steps stand beside them: what they
give for the same number of model calls is what a cache has to beat. Ctrl-C ends it with the clips made so far.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.judge import Verdict, judge
from benchmarks.quality import Studio, score
from benchmarks.rows import Measurement, Options, Row, measured_row, ratio_row
from hyvideo_lib.caches import CacheConfig, MagCurve
from hyvideo_lib.caches import Measurement as CurveMeasurement
from hyvideo_lib.demo import assets
from hyvideo_lib.demo.world import SCENES, Scene
from hyvideo_lib.geometry import latent_shape
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.pipeline import SampleRun
from hyvideo_lib.sampling import GuidanceConfig, make_sigmas
from hyvideo_lib.text import TextEmbeds, encode_prompt

NAME = "caches"
PEER = "no cache"
CLIPS, MEASURED_CLIPS = 16, 8
FIRST_SEED, FIRST_MEASURED_SEED = 3000, 5000
THRESHOLDS = {
    "teacache": (0.1, 0.15, 0.3),
    "first_block": (0.06, 0.1, 0.2),
    "easycache": (0.025, 0.05, 0.1),
    "magcache": (0.03, 0.06, 0.12),
}
FEWER_STEPS = (14, 10, 7)


@dataclass(frozen=True)
class Setting:
    """One way to make a clip."""

    name: str
    steps: int
    cache: CacheConfig | None = None


@dataclass(frozen=True)
class Clip:
    """What one setting made of one scene.

    cpu_seconds: of the process, so that other programs do not count. error: mean squared, pixels in 0..1.
    """

    scene: Scene
    seconds: float
    cpu_seconds: float
    calls: int
    skipped: int
    error: float
    verdict: Verdict


def all_settings(is_quick: bool, only: str) -> list[Setting]:
    """The plain run first."""
    steps = 4 if is_quick else assets.STEPS
    settings = [Setting(PEER, steps)]
    settings += [Setting(f"{fewer} steps", fewer) for fewer in ((2,) if is_quick else FEWER_STEPS)]
    for method, thresholds in THRESHOLDS.items():
        for threshold in thresholds[-1:] if is_quick else thresholds:
            settings.append(Setting(f"{method} {threshold}", steps, CacheConfig(method, threshold)))
    return [setting for setting in settings if setting.name == PEER or only in setting.name]


def make_run(studio: Studio, embeds: TextEmbeds, steps: int, cache: CacheConfig | None = None) -> SampleRun:
    return SampleRun(
        studio.model,
        embeds,
        None,
        make_sigmas(steps, assets.SHIFT),
        studio.vae.config.scaling,
        HeadlessHost(),
        guidance=GuidanceConfig(embedded=assets.GUIDANCE),
        cache=cache,
    )


def measure_curve(studio: Studio, scenes: Sequence[Scene], shape: tuple[int, int, int]) -> MagCurve:
    """MagCache's curve of the demo model, from clips that the comparison does not use."""
    measurement = CurveMeasurement()
    for seed, scene in enumerate(scenes, FIRST_MEASURED_SEED):
        run = make_run(studio, encode_prompt(scene.prompt(), studio.llm, studio.clip), assets.STEPS)
        run.make(torch.zeros(1, 16, *shape), seed, step_cache=measurement)
    return measurement.curve()


def psnr(errors: Sequence[float]) -> float | None:
    """Decibels of mean squared errors of pixels in 0..1; None for none at all."""
    mean = sum(errors) / len(errors)
    return round(-10 * math.log10(mean), 2) if mean else None


def run(options: Options) -> Iterator[Row]:
    """The measured curve, then a row for each setting and one for its ratio to the plain run."""
    studio = Studio()
    shape = latent_shape(32 if options.is_quick else assets.WIDTH, assets.HEIGHT, 5 if options.is_quick else 17)
    if options.wants("magnitude curve"):
        scenes = SCENES[3 :: len(SCENES) // MEASURED_CLIPS][: 1 if options.is_quick else MEASURED_CLIPS]
        started = time.perf_counter()
        curve = measure_curve(studio, scenes, shape)
        seconds = Measurement([time.perf_counter() - started])
        about = {"clips": len(scenes), "levels": curve.levels, "ratios": curve.ratios}
        yield {**measured_row(NAME, "magnitude curve", "hyvideo", seconds), **about}
    settings = all_settings(options.is_quick, options.only)
    if len(settings) == 1:
        return
    scenes = SCENES[:: len(SCENES) // CLIPS][: 1 if options.is_quick else CLIPS]
    made: list[list[Clip]] = []  # of every scene, under every setting
    try:
        for seed, scene in enumerate(scenes, FIRST_SEED):
            made.append(_make_clips(studio, scene, seed, settings, torch.zeros(1, 16, *shape)))
    except KeyboardInterrupt:
        if not made:
            raise
    peer = [clips[0] for clips in made]
    for place, setting in enumerate(settings):
        yield from _rows(setting.name, [clips[place] for clips in made], peer)


def _make_clips(studio: Studio, scene: Scene, seed: int, settings: Sequence[Setting], start: Tensor) -> list[Clip]:
    """One scene under every setting."""
    embeds = encode_prompt(scene.prompt(), studio.llm, studio.clip)
    plain: Tensor | None = None
    made = []
    for setting in settings:
        sample = make_run(studio, embeds, setting.steps, setting.cache)
        cache = sample.start_cache((start.shape[2], start.shape[3], start.shape[4]))
        begin, cpu_begin = time.perf_counter(), time.process_time()
        latents = sample.make(start, seed, step_cache=cache)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
        skipped = cache.report.skipped_steps if cache else 0
        video = studio.video(latents)[0]
        plain = video if plain is None else plain
        error = (video - plain).square().mean().item()
        made.append(Clip(scene, seconds, cpu_seconds, setting.steps - skipped, skipped, error, judge(video)))
    return made


def _rows(name: str, clips: Sequence[Clip], peer: Sequence[Clip]) -> Iterator[Row]:
    """What a setting took, and its ratio to the plain run's."""
    ours, theirs = (Measurement([clip.seconds for clip in side]) for side in (clips, peer))
    yield {**measured_row(NAME, name, "hyvideo", ours), **_outcome(clips)}
    if name != PEER:
        calls = sum(clip.calls for clip in clips) / sum(clip.calls for clip in peer)
        cpu = statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in zip(clips, peer, strict=True))
        yield {**ratio_row(NAME, name, PEER, ours, theirs), "cpu": cpu, "calls": calls, **_outcome(clips)}


def _outcome(clips: Sequence[Clip]) -> Row:
    """Of all clips together. right: percent in which colour, shape, motion and background are; others per attribute."""
    shares = score([clip.scene for clip in clips], [clip.verdict for clip in clips])
    right = [c.verdict.matches(c.scene.color, c.scene.shape, c.scene.motion, c.scene.background) for c in clips]
    return {
        "clips": len(clips),
        "skipped_steps": round(sum(clip.skipped for clip in clips) / len(clips), 2),
        "right": round(100 * sum(right) / len(right), 2),
        **{name: shares[name] for name in ("color", "shape", "motion", "background")},
        "psnr": psnr([clip.error for clip in clips]),
        "psnr_worst": psnr([max(clip.error for clip in clips)]),
    }

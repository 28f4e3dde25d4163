"""Step caches on the demo model: what each saves, and what that costs.

Every clip is made without a cache, then with each method at several thresholds from the same seed, in turns. The clips
are judged from their pixels and compared with those without a cache. Runs of fewer steps stand beside them: what they
give for the same number of model calls is what a cache has to beat.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
CLIPS, MEASURED_CLIPS = 24, 8
FIRST_SEED, FIRST_MEASURED_SEED = 3000, 5000
THRESHOLDS = {
    "teacache": (0.1, 0.15, 0.2, 0.3),
    "first_block": (0.06, 0.1, 0.15, 0.2),
    "easycache": (0.025, 0.05, 0.1, 0.2),
    "magcache": (0.03, 0.06, 0.12, 0.24),
}
FEWER_STEPS = (16, 14, 10, 7)


@dataclass(frozen=True)
class Setting:
    """One way to make a clip."""

    name: str
    steps: int
    cache: CacheConfig | None = None


@dataclass
class Tally:
    """What one setting made so far."""

    seconds: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # mean squared, pixels in 0..1
    verdicts: list[Verdict] = field(default_factory=list)


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
    measurement = CurveMeasurement(make_sigmas(assets.STEPS, assets.SHIFT).tolist())
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
    if options.wants("curve"):
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
    tallies = {setting.name: Tally() for setting in settings}
    for seed, scene in enumerate(scenes, FIRST_SEED):
        _make_clips(studio, scene, seed, settings, tallies, torch.zeros(1, 16, *shape))
    peer = tallies[PEER]
    for setting in settings:
        tally = tallies[setting.name]
        yield {**measured_row(NAME, setting.name, "hyvideo", Measurement(tally.seconds)), **_outcome(scenes, tally)}
        if setting.name != PEER:
            ratio = ratio_row(NAME, setting.name, PEER, Measurement(tally.seconds), Measurement(peer.seconds))
            yield {**ratio, "calls": sum(tally.calls) / sum(peer.calls), **_outcome(scenes, tally)}


def _make_clips(
    studio: Studio, scene: Scene, seed: int, settings: Sequence[Setting], tallies: dict[str, Tally], start: Tensor
) -> None:
    """One clip under every setting."""
    embeds = encode_prompt(scene.prompt(), studio.llm, studio.clip)
    plain: Tensor | None = None
    for setting in settings:
        tally = tallies[setting.name]
        sample = make_run(studio, embeds, setting.steps, setting.cache)
        cache = sample.start_cache((start.shape[2], start.shape[3], start.shape[4]))
        begin = time.perf_counter()
        latents = sample.make(start, seed, step_cache=cache)
        tally.seconds.append(time.perf_counter() - begin)
        report = cache.report if cache else None
        tally.skipped.append(report.skipped_steps if report else 0)
        tally.calls.append(setting.steps - tally.skipped[-1])
        video = studio.video(latents)[0]
        plain = video if plain is None else plain
        tally.errors.append((video - plain).square().mean().item())
        tally.verdicts.append(judge(video))


def _outcome(scenes: Sequence[Scene], tally: Tally) -> Row:
    """Of all clips together. right: percent in which colour, shape, motion and background are; others per attribute."""
    shares = score(scenes, tally.verdicts)
    right = [v.matches(s.color, s.shape, s.motion, s.background) for s, v in zip(scenes, tally.verdicts, strict=True)]
    return {
        "clips": len(scenes),
        "skipped_steps": round(sum(tally.skipped) / len(tally.skipped), 2),
        "right": round(100 * sum(right) / len(right), 2),
        **{name: shares[name] for name in ("color", "shape", "motion", "background")},
        "psnr": psnr(tally.errors),
        "psnr_worst": psnr([max(tally.errors)]),
    }

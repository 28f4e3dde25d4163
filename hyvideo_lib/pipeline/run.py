"""One request through all stages."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from ..host import HeadlessHost, Host
from ..memory import BlockSwap
from .caches import check_cache
from .clock import Clock
from .files import Files, check_files
from .loras import check_loras
from .notices import Notice
from .precision import Precision
from .report import RunReport
from .request import GenerateRequest
from .stages import PixelStage, SampleStage, TextStage


@dataclass(frozen=True, eq=False)
class Result:
    """Videos of one request, one per seed.

    frames: bytes [N, F, H, W, 3]. latents: [N, C, T, H/8, W/8], float32, unscaled. seconds: per stage.
    report: the same and more, per stage.
    """

    frames: Tensor
    latents: Tensor
    seeds: list[int]
    seconds: dict[str, float]
    warnings: tuple[Notice, ...]
    report: RunReport


def generate(
    request: GenerateRequest,
    files: Files,
    host: Host | None = None,
    start: Tensor | None = None,
    precision: Precision = Precision(),  # noqa: B008 (frozen)
    swap: BlockSwap = BlockSwap(),  # noqa: B008 (frozen)
) -> Result:
    """From a prompt to its videos.

    start: unscaled latents [1, C, T, H, W] to begin with instead of noise. swap: which of the transformer's blocks stay
    in RAM even if there is room. Raises HyvError's children only: bad input
    before anything is loaded, then OutOfMemory, NonFiniteOutput, and what the host raises when the user cancels.
    """
    request.check()
    transformer = check_files(files)["transformer"]
    check_loras(request.loras, transformer)
    check_cache(request.cache, transformer, request.width * request.height)
    host = host or HeadlessHost()
    precision.check_device(host.device, transformer, request.tokens)
    clock = Clock(host)
    with closing(TextStage(files, precision, host, clock)) as encode:
        texts = encode(request, clock)
    with closing(SampleStage(files, precision, host, clock, swap)) as sample:
        latents = torch.cat([sample(request, texts, seed, clock, start) for seed in request.seeds])
    with closing(PixelStage(files.vae, precision, host, clock)) as pixels:
        frames = torch.stack([pixels.decode(row, request.tiles, clock) for row in latents.split(1)])
    notices = (*texts.warnings, *clock.notices)
    return Result(frames, latents, request.seeds, clock.seconds, notices, RunReport(clock.stages))

"""Sampling: a form around the library's loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..hyvideo_lib.errors import InvalidGuidance, InvalidSetting, InvalidSize
from ..hyvideo_lib.geometry import SPATIAL_COMPRESSION
from ..hyvideo_lib.sampling import (
    EMBEDDED_RANGE,
    SHIFT_RANGE,
    SOLVERS,
    GuidanceConfig,
    consecutive_seeds,
    latent_mask,
    make_sigmas,
    truncate_sigmas,
)
from ..hyvideo_lib.sampling.denoise import check_levels
from ..hyvideo_lib.vae import VAEConfig
from . import comfy_host
from .decode import check_samples
from .keep import keeping
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_CACHE, HYV_EMBEDS, HYV_GUIDANCE, HYV_MODEL, HYV_ROPE, Embeds, TransformerHandle

if TYPE_CHECKING:
    from ..hyvideo_lib.caches import CacheConfig, CacheReport
    from ..hyvideo_lib.text import TextEmbeds
    from ..hyvideo_lib.transformer import RopeSettings, TransformerConfig

SCALING = VAEConfig().scaling
"""Of HunyuanVideo's latents: LATENT wires carry them unscaled, the transformer wants them multiplied by this."""


class Sampler(io.ComfyNode):
    """HyvSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvSampler",
            display_name="HunyuanVideo Sampler",
            category=f"{CATEGORY}/sample",
            description="Makes the video's latents, step by step.",
            inputs=[
                HYV_MODEL.Input("model", tooltip="From Load Transformer."),
                HYV_EMBEDS.Input("embeds", tooltip="The encoded prompt."),
                io.Latent.Input(
                    "latents",
                    tooltip="Size and number of the videos; with a strength below 1 or a mask also what to start from.",
                ),
                *_widgets(),
                *_options(),
            ],
            outputs=[
                io.Latent.Output("samples", display_name="latents", tooltip="For Decode."),
                io.Sigmas.Output("used_sigmas", display_name="sigmas", tooltip="The noise levels that were used."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: int = 20,
        guidance: float = 6.0,
        shift: float = 7.0,
        solver: str = "euler",
        strength: float = 1.0,
    ) -> bool | str:
        values = {"steps": steps, "guidance": guidance, "shift": shift, "solver": solver, "strength": strength}
        return check_inputs(cls, values)

    @classmethod
    @names_its_errors
    def execute(
        cls,
        model: TransformerHandle,
        embeds: Embeds,
        latents: dict[str, Any],
        steps: int = 20,
        guidance: float = 6.0,
        shift: float = 7.0,
        seed: int = 0,
        solver: str = "euler",
        strength: float = 1.0,
        rope: RopeSettings | None = None,
        guidance_options: GuidanceConfig | None = None,
        sigmas: Tensor | None = None,
        mask: Tensor | None = None,
        cache: CacheConfig | None = None,
    ) -> io.NodeOutput:
        from ..hyvideo_lib.pipeline import Ladder, SampleRun, measured
        from ..hyvideo_lib.transformer import RopeSettings

        config = model.model.config
        given = check_size_of(check_samples(latents, config.out_channels), config)
        options = replace(guidance_options or GuidanceConfig(), embedded=guidance)
        check_texts(embeds, options, config, len(given))
        if sigmas is None:
            levels = truncate_sigmas(make_sigmas(steps, shift), strength)
        else:
            levels = sigmas.detach().float().cpu()
            check_levels(levels)
        pixel_mask = latents.get("noise_mask") if mask is None else mask
        masks = None if pixel_mask is None else latent_mask(pixel_mask, given).split(1)
        host = comfy_host.ComfyHost(cls.hidden.unique_id, model.managed.load_device, has_previews=True)
        run = SampleRun(
            model.model,
            *texts_of(embeds, 0),
            levels,
            SCALING,
            host,
            solver,
            options,
            rope or RopeSettings(),
            model.offloader,
            model.loras,
            cache,
            backend=model.attention,
            compiling=model.compiling,
        )
        room = comfy_host.room_bytes(model.managed.load_device)
        if room is not None:
            room += model.offloader.memo_bytes  # is of the run's work
        asked = run
        run, working = run.fitted(given.shape[2:], room)
        run, most = model.settled.begin(run, given.shape[2:], room)
        caches = [run.start_cache(given.shape[2:]) for _ in given]
        seeds = consecutive_seeds(seed, len(given))
        before = model.offloader.traffic
        with measured(host.device) as log, keeping(is_only_copy=True) as keep:
            comfy_host.load(model.managed, working_bytes=working, most=most)
            run = run.attending(given.shape[2:])
            ladder = Ladder(run)
            videos = []
            for i, seed in enumerate(seeds):
                positive, negative = texts_of(embeds, i)
                ladder.run = replace(ladder.run, positive=positive, negative=negative)
                videos.append(ladder.run.make(given[i : i + 1], seed, masks and masks[i], caches[i], ladder))
                if i + 1 < len(seeds):  # after the last one nothing can fail any more
                    keep(videos[-1])
            model.settled.learn(asked, ladder.run, given.shape[2:], room)
            log.traffic, log.attention = model.offloader.traffic - before, run.attention.name
            log.swapped_blocks, log.rungs = model.offloader.num_swapped, tuple(run.rungs)
            log.uncompiled = ladder.run.uncompiled
        assert log.report is not None
        skipped = [f", {describe_skipped(reports)}"] if (reports := [cache.report for cache in caches if cache]) else []
        host.say("".join([log.report.describe(), *skipped]))
        rest = {key: value for key, value in latents.items() if key not in ("samples", "noise_mask")}
        return io.NodeOutput({**rest, "samples": torch.cat(videos)}, levels)


def _widgets() -> list[Any]:
    """What the node itself asks for."""
    solvers = "; ".join(f"{name}: {solver.description}" for name, solver in SOLVERS.items())
    return [
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=10_000,
            tooltip="More steps, finer result, proportionally more time. 20 to 50 are usual.",
        ),
        io.Float.Input(
            "guidance",
            default=6.0,
            min=EMBEDDED_RANGE[0],
            max=EMBEDDED_RANGE[1],
            step=0.1,
            tooltip="How closely the prompt is followed, in one pass. The released model uses 6, the demo 2. Higher "
            "is stiffer and more saturated. Costs nothing.",
        ),
        io.Float.Input(
            "shift",
            default=7.0,
            min=SHIFT_RANGE[0],
            max=SHIFT_RANGE[1],
            step=0.01,
            tooltip="Moves steps towards the noisy end, where layout and motion are decided. 7 for 50 steps, 17 for "
            "under 20 with the released model, 3 for the demo. Costs nothing.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="Which of the possible videos. The same seed gives the same video; a batch takes the following "
            "seeds as well.",
        ),
        io.Combo.Input("solver", options=list(SOLVERS), default="euler", tooltip=solvers),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Video to video: which part of the steps is run, from the given latents with noise added. 1 "
            "starts from noise alone; 0.3 changes little. Lower is faster.",
        ),
    ]


def _options() -> list[Any]:
    """What may be connected."""
    return [
        HYV_ROPE.Input("rope", optional=True, tooltip="From RoPE; without it as trained."),
        HYV_GUIDANCE.Input(
            "guidance_options",
            optional=True,
            tooltip="From Guidance (CFG); without it no negative prompt acts.",
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels from another node, falling within 1 to 0. Steps, shift and strength are then not "
            "used.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="White is made anew, black keeps the given latents. One frame for all, or one for each.",
        ),
        HYV_CACHE.Input(
            "cache",
            optional=True,
            tooltip="From Step Cache: faster, and not the same video. Without it every step is computed.",
        ),
    ]


def describe_skipped(reports: Sequence[CacheReport]) -> str:
    """ "skipped 7 of 20 steps"; of several videos that of each."""
    return "; ".join(report.sentence() for report in reports)


def check_size_of(samples: Tensor, config: TransformerConfig) -> Tensor:
    """The latents [B, C, T, H, W] themselves. Raises InvalidSize if they cannot be cut into patches."""
    height, width = samples.shape[3:]
    if height % config.patch_size[1] or width % config.patch_size[2]:
        raise InvalidSize(
            f"The latents are of {SPATIAL_COMPRESSION * width} x {SPATIAL_COMPRESSION * height} pixels, but width and "
            "height must be multiples of 16."
        )
    return samples


def texts_of(embeds: Embeds, video: int) -> tuple[TextEmbeds, TextEmbeds | None]:
    """The prompts of one video of a batch: its own row where there is one for each."""
    positive, negative = (
        side if side is None or len(side) == 1 else side.row(video) for side in (embeds.positive, embeds.negative)
    )
    assert positive is not None
    return positive, negative


def check_texts(embeds: Embeds, guidance: GuidanceConfig, config: TransformerConfig, num_videos: int = 1) -> None:
    """Raises InvalidGuidance for CFG without a negative prompt, InvalidSetting for another model's embeds, or another
    number of prompts than one, or one for each video.
    """
    if guidance.uses_cfg and embeds.negative is None:
        raise InvalidGuidance(
            f"cfg_scale is {guidance.cfg_scale:g}, which needs a negative prompt, but these embeds have none. Connect "
            "one, or set cfg_scale to 1."
        )
    for side in (embeds.positive, embeds.negative):
        if side is not None:
            _check_widths(side, config)
            if len(side) not in (1, num_videos):
                raise InvalidSetting(
                    f"{len(side)} prompts were encoded, but there are {num_videos} videos to make. Encode one prompt, "
                    "or one for each video."
                )


def _check_widths(embeds: TextEmbeds, config: TransformerConfig) -> None:
    found = embeds.text_embeds.shape[-1], embeds.pooled_embeds.shape[-1]
    wanted = config.text_dim, config.pooled_dim
    if found != wanted:
        raise InvalidSetting(
            f"The prompt was encoded with {found[0]} numbers a token and {found[1]} for the whole, but this "
            f"transformer reads {wanted[0]} and {wanted[1]}. Load the text encoders that belong to it."
        )


NODES = (Sampler,)

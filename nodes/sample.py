"""Sampling: a form around the library's loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..hyvideo_lib.errors import InvalidGuidance, InvalidSetting, InvalidSize
from ..hyvideo_lib.memory.estimate import transformer_bytes
from ..hyvideo_lib.sampling import (
    SOLVERS,
    GuidanceConfig,
    Kept,
    consecutive_seeds,
    denoise,
    draw_noise,
    make_sigmas,
    make_velocity_fn,
    mix_noise,
    truncate_sigmas,
)
from ..hyvideo_lib.sampling.denoise import check_levels
from ..hyvideo_lib.text import TextEmbeds
from ..hyvideo_lib.transformer import RopeSettings, TransformerConfig
from . import comfy_host
from .decode import check_samples
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_EMBEDS, HYV_GUIDANCE, HYV_MODEL, HYV_ROPE, Embeds, TransformerHandle

SCALING = 0.476986
"""Of HunyuanVideo's latents: LATENT wires carry them unscaled, the transformer wants them multiplied by this."""


class Sampler(io.ComfyNode):
    """HyvSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        solvers = "; ".join(f"{name}: {solver.description}" for name, solver in SOLVERS.items())
        return io.Schema(
            node_id="HyvSampler",
            display_name="HunyuanVideo Sampler",
            category=f"{CATEGORY}/sample",
            description="Makes the video's latents, step by step.",
            inputs=[
                HYV_MODEL.Input("model", tooltip="From Load Transformer."),
                HYV_EMBEDS.Input("embeds", tooltip="The encoded prompt."),
                io.Latent.Input(
                    "latents", tooltip="Size and number of the videos; with a strength below 1 also what to start from."
                ),
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
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How closely the prompt is followed, in one pass. The released model uses 6, the demo 2. "
                    "Higher is stiffer and more saturated. Costs nothing.",
                ),
                io.Float.Input(
                    "shift",
                    default=7.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Moves steps towards the noisy end, where layout and motion are decided. 7 for 50 steps, "
                    "17 "
                    "for under 20 with the released model, 3 for the demo. Costs nothing.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Which of the possible videos. The same seed gives the same video; a batch takes the "
                    "following seeds as well.",
                ),
                io.Combo.Input("solver", options=list(SOLVERS), default="euler", tooltip=solvers),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Video to video: which part of the steps is run, from the given latents with noise added. "
                    "1 "
                    "starts from noise alone; 0.3 changes little. Lower is faster.",
                ),
                HYV_ROPE.Input("rope", optional=True, tooltip="From RoPE; without it as trained."),
                HYV_GUIDANCE.Input(
                    "guidance_options",
                    optional=True,
                    tooltip="From Guidance (CFG); without it no negative prompt acts.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels from another node, falling within 1 to 0. Steps, shift and strength are then "
                    "not used.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is made anew, black keeps the given latents. One frame for all, or one for each.",
                ),
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
    ) -> io.NodeOutput:
        config = model.model.config
        given = check_size_of(check_samples(latents, config.out_channels), config)
        options = replace(guidance_options or GuidanceConfig(), embedded=guidance)
        check_texts(embeds, options, config)
        if sigmas is None:
            levels = truncate_sigmas(make_sigmas(steps, shift), strength)
        else:
            levels = sigmas.detach().float().cpu()
            check_levels(levels)
        kept_mask = mask_for(given, latents.get("noise_mask") if mask is None else mask)
        host = comfy_host.ComfyHost(cls.hidden.unique_id, model.managed.load_device, has_previews=True)
        run = Run(model, embeds, options, rope or RopeSettings(), levels, solver, host)
        run.load(given)
        seeds = consecutive_seeds(seed, len(given))
        videos = [
            run.one(given[i : i + 1], video_seed, None if kept_mask is None else kept_mask[i : i + 1])
            for i, video_seed in enumerate(seeds)
        ]
        rest = {key: value for key, value in latents.items() if key not in ("samples", "noise_mask")}
        return io.NodeOutput({**rest, "samples": torch.cat(videos)}, levels)


@dataclass(frozen=True, eq=False)
class Run:
    """What is the same for all videos of one execution."""

    handle: TransformerHandle
    embeds: Embeds
    guidance: GuidanceConfig
    rope: RopeSettings
    sigmas: Tensor
    solver: str
    host: comfy_host.ComfyHost

    @property
    def config(self) -> TransformerConfig:
        return self.handle.model.config

    def load(self, latents: Tensor) -> None:
        """Bring the transformer to its device, with room for one forward at this size."""
        config = self.config
        frames, height, width = latents.shape[2:]
        _, patch, _ = config.patch_size
        tokens = frames * (height // patch) * (width // patch) + self.embeds.positive.text_embeds.shape[1]
        passes = 2 if self.guidance.uses_cfg and self.guidance.batched else 1
        item_size = self.handle.model.compute_dtype.itemsize
        work = transformer_bytes(config.hidden_size, config.mlp_ratio, tokens, item_size, passes)
        comfy_host.load(self.handle.managed, working_bytes=work)

    def one(self, given: Tensor, seed: int, mask: Tensor | None) -> Tensor:
        """The latents of one video [1, C, T, H, W], unscaled, on the CPU."""
        noise = draw_noise(given.shape[1:], [seed])
        start = given.float().cpu() * SCALING
        latents = mix_noise(start, noise, float(self.sigmas[0]))
        velocity_fn = make_velocity_fn(
            self, self.embeds.positive, self.embeds.negative, sigmas=self.sigmas, config=self.guidance
        )
        kept = None if mask is None else Kept(start, noise, mask)
        result = denoise(velocity_fn, latents.to(self.host.device), self.sigmas, self.solver, self.host, kept=kept)
        return result.cpu() / SCALING

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        text_mask: Tensor,
        pooled_embeds: Tensor,
        guidance: float | None = None,
        clean_first_frame: bool = False,
    ) -> Tensor:
        """The transformer, as the guidance calls it."""
        velocity: Tensor = self.handle.model(
            latents,
            timesteps,
            text_embeds,
            text_mask,
            pooled_embeds,
            guidance=guidance,
            clean_first_frame=clean_first_frame,
            rope=self.rope,
            host=self.host,
            source=self.handle.offloader,
        )
        return velocity


def check_size_of(samples: Tensor, config: TransformerConfig) -> Tensor:
    """The latents [B, C, T, H, W] themselves. Raises InvalidSize if they cannot be cut into patches."""
    height, width = samples.shape[3:]
    if height % config.patch_size[1] or width % config.patch_size[2]:
        raise InvalidSize(
            f"The latents are of {8 * width} x {8 * height} pixels, but width and height must be multiples of 16."
        )
    return samples


def check_texts(embeds: Embeds, guidance: GuidanceConfig, config: TransformerConfig) -> None:
    """Raises InvalidGuidance for CFG without a negative prompt, InvalidSetting for another model's embeds."""
    if guidance.uses_cfg and embeds.negative is None:
        raise InvalidGuidance(
            f"cfg_scale is {guidance.cfg_scale:g}, which needs a negative prompt, but these embeds have none. Connect "
            "one, or set cfg_scale to 1."
        )
    for side in (embeds.positive, embeds.negative):
        if side is not None:
            _check_widths(side, config)


def _check_widths(embeds: TextEmbeds, config: TransformerConfig) -> None:
    found = embeds.text_embeds.shape[-1], embeds.pooled_embeds.shape[-1]
    wanted = config.text_dim, config.pooled_dim
    if found != wanted:
        raise InvalidSetting(
            f"The prompt was encoded with {found[0]} numbers a token and {found[1]} for the whole, but this "
            "transformer "
            f"reads {wanted[0]} and {wanted[1]}. Load the text encoders that belong to it."
        )


def mask_for(latents: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask [B, 1, T, H, W] in 0..1 for latents [B, C, T, H, W], from one in pixels.

    mask: [H, W], or [frames, H, W] with one frame or as many as the video; or a latent's own [B, 1, (T,) H, W].
    Frames of one latent frame are joined by their largest value. Raises InvalidSetting for other numbers of frames.
    """
    if mask is None:
        return None
    batch, _, frames, height, width = latents.shape
    mask = mask.float().cpu()
    if mask.ndim == 4:
        mask = mask[:, 0] if mask.shape[1] == 1 else mask.flatten(0, 1)
    if mask.ndim == 5:
        mask = mask[:1, 0].flatten(0, 1)
    mask = mask.reshape(-1, *mask.shape[-2:])  # [F, H, W]
    count = len(mask)
    if count == 4 * (frames - 1) + 1 and frames > 1:
        mask = torch.cat([mask[:1], mask[1:].unflatten(0, (frames - 1, 4)).amax(dim=1)])
    elif count not in (1, frames):
        raise InvalidSetting(
            f"The mask has {count} frames, but the video has {4 * (frames - 1) + 1}. Give one frame for all, or one "
            "for each."
        )
    mask = F.interpolate(mask[:, None], size=(height, width), mode="area")[:, 0]
    return mask.clamp(0, 1).expand(frames, height, width)[None, None].expand(batch, -1, -1, -1, -1)


NODES = (Sampler,)

"""One run of the sampler: what is the same for all its videos, and the making of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..geometry import align_up
from ..host import Host
from ..lora import LoraUse, attach, lora_bytes
from ..memory import BlockSwap, Offloader
from ..memory.estimate import transformer_bytes
from ..memory.memo import KEPT
from ..sampling import GuidanceConfig, Kept, VelocityFn, VelocityModel, denoise, draw_noise, make_velocity_fn, mix_noise
from ..text import TextEmbeds
from ..transformer import HunyuanVideoTransformer, RopeSettings, TransformerConfig


def offload_transformer(model: HunyuanVideoTransformer, swap: BlockSwap | None = None) -> Offloader:
    """The transformer's weights at home: blocks that may stay there during a run, modulations that always do."""
    return Offloader(model, model.blocks, len(model.double_blocks), swap, aside=model.modulations)


def memo_bytes(source: Offloader, model: HunyuanVideoTransformer, steps: int, uses_cfg: bool) -> int:
    """The modulating vectors of all steps, and the largest of the layers that make them."""
    numbers = sum(modulation.linear.out_features for modulation in model.modulations)
    branches = 2 if uses_cfg else 1
    return branches * min(steps, KEPT) * numbers * model.compute_dtype.itemsize + source.visit_bytes


class _Listener:
    """Takes the transformer's calls, hears the conditioning vectors and computes nothing else."""

    def __init__(self, model: HunyuanVideoTransformer) -> None:
        self._model, self.config = model, model.config
        self.vecs: list[Tensor] = []

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
        condition = self._model.condition(timesteps, pooled_embeds, guidance, (1, 1, 1) if clean_first_frame else None)
        self.vecs += [vec for vec in (condition.vec, condition.first_vec) if vec is not None]
        return torch.zeros_like(latents)


@dataclass(frozen=True, eq=False)
class SampleRun:
    """The transformer with everything that one run fixes. Latents go in and come out unscaled, on the CPU.

    positive, negative: the encoded prompts; negative may be None without classifier-free guidance. sigmas: [steps + 1].
    scaling: what the VAE's latents are multiplied by for the transformer. source: where the transformer's weights come
    from; None if all are in place. loras: act on the transformer while a video is made.
    """

    model: HunyuanVideoTransformer
    positive: TextEmbeds
    negative: TextEmbeds | None
    sigmas: Tensor
    scaling: float
    host: Host
    solver: str = "euler"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    rope: RopeSettings = field(default_factory=RopeSettings)
    source: Offloader | None = None
    loras: tuple[LoraUse, ...] = ()

    @property
    def config(self) -> TransformerConfig:
        return self.model.config

    @property
    def attention(self) -> str:
        """The backend, for reports."""
        return "sdpa"

    def working_bytes(self, latent_shape: tuple[int, int, int]) -> int:
        """What a run needs beside the weights, for latents of (T, H, W): activations, LoRAs, modulating vectors."""
        sides = zip(latent_shape, self.config.patch_size, strict=True)
        tokens = self.positive.text_embeds.shape[1]
        image = 1
        for side, patch in sides:
            image *= align_up(side, patch) // patch
        item_size = self.model.compute_dtype.itemsize
        work = transformer_bytes(
            self.config.hidden_size,
            self.config.mlp_ratio,
            image + tokens,
            item_size,
            batch=2 if self.guidance.uses_cfg and self.guidance.batched else 1,
        )
        beside = (
            0 if self.source is None else memo_bytes(self.source, self.model, len(self.sigmas), self.guidance.uses_cfg)
        )
        return work + lora_bytes(self.loras, item_size) + beside

    def make(self, start: Tensor, seed: int, mask: Tensor | None = None) -> Tensor:
        """The latents of one video, [1, C, T, H, W], float32.

        start: [1, C, T, H, W], what to begin with where sigmas[0] is below 1; otherwise only its shape and, with a
        mask, its kept part count. mask: [1, 1, T or 1, H, W] in 0..1, 1 where things are made anew; None: everywhere.
        Raises NonFiniteOutput, InvalidSetting, OutOfMemory, and what the host raises when the user cancels.
        """
        noise = draw_noise(start.shape[1:], [seed])
        clean = start.float().cpu() * self.scaling
        latents = mix_noise(clean, noise, float(self.sigmas[0]))
        latents = latents.to(self.host.device)
        kept = None if mask is None else Kept(clean, noise, mask)
        with attach(self.model, self.loras):
            made = denoise(
                self._remembering(self._velocity_fn(self)), latents, self.sigmas, self.solver, self.host, kept=kept
            )
        return made.cpu() / self.scaling

    def _velocity_fn(self, model: VelocityModel) -> VelocityFn:
        return make_velocity_fn(model, self.positive, self.negative, sigmas=self.sigmas, config=self.guidance)

    def _remembering(self, velocity_fn: VelocityFn) -> VelocityFn:
        """The same, with the modulating vectors of the next steps computed together when the first of them is due."""
        if self.source is None:
            return velocity_fn
        source, levels = self.source, self.sigmas[:-1].tolist()
        branches = 2 if self.guidance.uses_cfg else 1
        filled: set[float] = set()

        def with_memo(latents: Tensor, sigma: float) -> Tensor:
            if sigma in levels and sigma not in filled:
                place = levels.index(sigma)
                coming = levels[place : place + KEPT // branches]
                source.fill(self._conditionings(latents, coming), self.host.check_interrupt)
                filled.update(coming)
            return velocity_fn(latents, sigma)

        return with_memo

    @torch.no_grad()
    def _conditionings(self, latents: Tensor, sigmas: Sequence[float]) -> list[Tensor]:
        """The conditioning vectors at these levels, from the very calls that the steps will make."""
        listener = _Listener(self.model)
        velocity_fn = self._velocity_fn(listener)
        for sigma in sigmas:
            velocity_fn(latents, sigma)
        return listener.vecs

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
        velocity: Tensor = self.model(
            latents,
            timesteps,
            text_embeds,
            text_mask,
            pooled_embeds,
            guidance=guidance,
            clean_first_frame=clean_first_frame,
            rope=self.rope,
            host=self.host,
            source=self.source,
        )
        return velocity

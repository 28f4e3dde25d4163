"""One run of the sampler: what is the same for all its videos, and the making of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..attention import AUTO, PLAIN, Attention, Problem, choose_attention
from ..caches import CacheConfig, StepCache
from ..device import on_device
from ..errors import OutOfMemory
from ..geometry import SPATIAL_COMPRESSION, pixel_frames
from ..host import Host
from ..lora import LoraUse, attach
from ..memory import BlockSwap, Offloader
from ..memory.machine import gib
from ..memory.memo import KEPT
from ..memory.plan import with_reserve
from ..memory.ram import free_ram_bytes, free_swap_bytes
from ..sampling import GuidanceConfig, Kept, VelocityFn, VelocityModel, denoise, draw_noise, make_velocity_fn, mix_noise
from ..text import TextEmbeds
from ..transformer import CompileConfig, HunyuanVideoTransformer, LeanConfig, RopeSettings, TransformerConfig
from ..transformer.compiling import begin_run, why_uncompiled
from ..transformer.loan import on_loan
from .ladder import Ladder, guide_in_turn
from .working import SampleWork


def offload_transformer(model: HunyuanVideoTransformer, swap: BlockSwap | None = None) -> Offloader:
    """The transformer's weights at home: blocks that may stay there during a run, modulations that always do."""
    num_double = len(model.double_blocks)
    return Offloader(model, model.blocks, num_double, swap, aside=model.modulations, on_loan_fn=on_loan)


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


class _Model:
    """The transformer of a run as the guidance calls it; a step cache may answer around and inside it."""

    def __init__(self, run: SampleRun, cache: StepCache | None) -> None:
        self._run, self._cache, self.config = run, cache, run.config

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
        run, cache = self._run, self._cache
        known = cache.before_call(latents[:, : self.config.out_channels]) if cache else None
        if known is not None:
            return known
        velocity: Tensor = run.model(
            latents,
            timesteps,
            text_embeds,
            text_mask,
            pooled_embeds,
            guidance=guidance,
            clean_first_frame=clean_first_frame,
            rope=run.rope,
            host=run.host,
            source=run.source,
            cache=cache,
            lean=run.lean,
            attend_fn=run.attention.attend_fn,
            compiling=run.compiling,
        )
        if cache:
            cache.after_call(velocity)
        return velocity


@dataclass(frozen=True, eq=False)
class SampleRun:
    """The transformer with everything that one run fixes. Latents go in and come out unscaled, on the CPU.

    positive, negative: the encoded prompts; negative may be None without classifier-free guidance. sigmas: [steps + 1].
    scaling: what the VAE's latents are multiplied by for the transformer. source: where the transformer's weights come
    from; None if all are in place. loras: act on the transformer while a video is made. cache: skips passes; None
    computes all. lean: how far the blocks' working memory is cut down. backend: the attention that is asked for;
    attention: the one that runs, see `attending`. compiling: how the blocks are compiled; None leaves them as they are.
    rungs: what was done when memory ran out, in words; `make` adds to it.
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
    cache: CacheConfig | None = None
    lean: LeanConfig = field(default_factory=LeanConfig)
    backend: str = AUTO
    attention: Attention = PLAIN
    compiling: CompileConfig | None = None
    rungs: list[str] = field(default_factory=list)

    @property
    def config(self) -> TransformerConfig:
        return self.model.config

    @property
    def uncompiled(self) -> str | None:
        """Why the blocks ran as they are in the last video though they were to be compiled; None if they did not."""
        return why_uncompiled(self.compiling, self.host.device) if self.compiling else None

    def fitted(self, latent_shape: tuple[int, int, int], room: int | None) -> tuple[SampleRun, int]:
        """The same run, its blocks as lean as the device asks for, for latents of (T, H, W); and what it takes there.

        room: bytes of the device for weights and work together; None is without bound, and then nothing is counted,
        but on a CPU what would take much of the free RAM. See `SampleWork.fitted`. Both passes of CFG go in turn where
        not even the leanest blocks fit otherwise. The bytes are those beside the weights, with what should be kept
        free. Raises OutOfMemory for what RAM cannot hold.
        """
        if room is None:
            return self._in_ram(latent_shape), 0
        least = self.source.least_bytes if self.source else 0
        for run, words in filter(None, ((self, ""), guide_in_turn(self))):
            lean, work = run._work(latent_shape).fitted(room)
            told = [words] if words else []
            if least + with_reserve(work) <= room:
                break
        run.rungs.extend(told)
        return replace(run, lean=lean), with_reserve(work)

    def _in_ram(self, latent_shape: tuple[int, int, int]) -> SampleRun:
        """The same run as lean as free RAM asks for. A system that has none left ends the process without a word."""
        work = self._work(latent_shape)
        free = free_ram_bytes() if self.host.device.type == "cpu" else None
        if free is None or work.is_small(free):
            return self
        for run, words in filter(None, ((self, ""), guide_in_turn(self))):
            lean, num_bytes = replace(work, guidance=run.guidance).fitted(free)
            if num_bytes <= free + free_swap_bytes():
                run.rungs.extend([words] if words else [])
                return replace(run, lean=lean)
        frames, height, width = latent_shape
        raise OutOfMemory(
            f"Sampling {pixel_frames(frames)} frames of {SPATIAL_COMPRESSION * width} x {SPATIAL_COMPRESSION * height} "
            f"takes {gib(num_bytes)} of RAM beside the weights in the form that takes least, and {gib(free)} are free. "
            "Make the video smaller or shorter (width, height, frames), or close other programs; `hyvideo plan`, or in "
            "ComfyUI the node Plan, says what fits."
        )

    def attending(self, latent_shape: tuple[int, int, int]) -> SampleRun:
        """The same run with the attention that is asked for; "auto" may time some, so the device should be ready.

        Raises InvalidSetting, MissingPackage for one that cannot run.
        """
        config, device, dtype = self.config, self.host.device, self.model.compute_dtype
        problem = Problem(device, dtype, config.head_dim, config.num_heads, self._work(latent_shape).tokens)
        return replace(self, attention=choose_attention(self.backend, problem))

    def working_bytes(self, latent_shape: tuple[int, int, int]) -> int:
        """What the run takes beside the weights, for latents of (T, H, W), with what should be kept free."""
        return with_reserve(self._work(latent_shape).bytes_in(self.lean))

    def _work(self, latent_shape: tuple[int, int, int]) -> SampleWork:
        texts = [text.text_embeds.shape[1] for text in (self.positive, self.negative) if text is not None]
        steps = len(self.sigmas) - 1
        is_home = self.host.device.type == "cpu"  # where what waits in RAM is counted with the rest
        return SampleWork(
            self.model,
            self.source,
            latent_shape,
            max(texts),
            steps,
            self.guidance,
            replace(self.cache, on_host=False) if self.cache and is_home else self.cache,
            self.loras,
            self.backend,
        )

    def start_cache(self, latent_shape: tuple[int, int, int]) -> StepCache | None:
        """The step cache of one video with latents of (T, H, W), for `make`: afterwards it tells what it skipped.

        None if the run has none. Raises InvalidSetting if it cannot be used with this transformer.
        """
        if self.cache is None:
            return None
        config = self.config
        model = config.hidden_size, config.num_double_blocks, config.num_single_blocks
        pixels = SPATIAL_COMPRESSION**2 * latent_shape[1] * latent_shape[2]
        return self.cache.begin_run(self.sigmas.tolist(), model, pixels)

    def make(
        self,
        start: Tensor,
        seed: int,
        mask: Tensor | None = None,
        step_cache: StepCache | None = None,
        ladder: Ladder | None = None,
    ) -> Tensor:
        """The latents of one video, [1, C, T, H, W], float32.

        start: [1, C, T, H, W], what to begin with where sigmas[0] is below 1; otherwise only its shape and, with a
        mask, its kept part count. mask: [1, 1, T or 1, H, W] in 0..1, 1 where things are made anew; None: everywhere.
        step_cache: from `start_cache`, and used for this video only; None: one of its own. ladder: `Ladder(self)`, the
        same for all videos of a batch, so that each begins where memory sufficed for the one before; None: its own.
        Raises NonFiniteOutput, InvalidSetting, OutOfMemory, and what the host raises when the user cancels.
        """
        step_cache = step_cache or self.start_cache((start.shape[2], start.shape[3], start.shape[4]))
        noise = draw_noise(start.shape[1:], [seed])
        clean = start.float().cpu() * self.scaling
        latents = mix_noise(clean, noise, float(self.sigmas[0]))
        latents = latents.to(self.host.device)
        if self.compiling:
            begin_run(self.compiling, latents.device)
        kept = None if mask is None else Kept(clean, noise, mask)
        try:
            with on_device(self.host.device), attach(self.model, self.loras):
                velocity_fn = (ladder or Ladder(self)).velocity_fn(
                    lambda run: run._remembering(run.velocity_fn(step_cache)),
                    step_cache.forget if step_cache else lambda: None,
                )
                made = denoise(velocity_fn, latents, self.sigmas, self.solver, self.host, kept=kept)
        finally:
            if step_cache:
                step_cache.release()
        return made.cpu() / self.scaling

    def velocity_fn(self, step_cache: StepCache | None = None) -> VelocityFn:
        """The guided velocity of one video; step_cache, from `start_cache`, may skip passes of it."""
        guided = self._guided(_Model(self, step_cache), step_cache)
        if step_cache is None:
            return guided
        if self.cache and self.cache.on_host:
            step_cache.keep_on_host()

        def counted(latents: Tensor, sigma: float) -> Tensor:
            made = guided(latents, sigma)
            step_cache.end()
            return made

        return counted

    def _guided(self, model: VelocityModel, step_cache: StepCache | None = None) -> VelocityFn:
        return make_velocity_fn(
            model,
            self.positive,
            self.negative,
            sigmas=self.sigmas,
            config=self.guidance,
            before_pass=step_cache.begin if step_cache else None,
        )

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
        velocity_fn = self._guided(listener)
        for sigma in sigmas:
            velocity_fn(latents, sigma)
        return listener.vecs

"""The three stages. Each loads its models when made and lets them go when closed, so that no two share the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..caches import CacheReport, StepCache
from ..checkpoint import load_any_vae, load_text_encoder, load_transformer
from ..errors import WrongKind
from ..finite import check_finite
from ..geometry import SPATIAL_COMPRESSION, pixel_frames
from ..host import Host
from ..lora import LoraUse
from ..memory import BlockSwap, Traffic, free_device_bytes, module_bytes
from ..memory.vram import give_back
from ..sampling import make_sigmas, truncate_sigmas
from ..text import ClipTextEncoder, LlamaTextEncoder, PromptTemplate, TextEmbeds, encode_prompt
from ..vae import CausalVideoVAE, Tiles, TinyVAE
from ..video import FlatWatch, frames_from_pixels, pixels_from_frames
from .clock import STAGES, Clock
from .files import Files, vae_scaling
from .ladder import Ladder, load_weights
from .loras import LoraChoice, load_loras
from .notices import Notice
from .precision import Precision
from .report import describe_tiles
from .request import GenerateRequest
from .sampler import SampleRun, offload_transformer
from .settled import SettledRuns
from .texts import TEXT_WORKING_BYTES, bringing_layers, offload_text_encoder
from .tiles import TilesChoice, VAEWork, free_bytes

logger = logging.getLogger("hyvideo")

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Texts:
    """An encoded prompt, on the CPU. negative is None without classifier-free guidance."""

    positive: TextEmbeds
    negative: TextEmbeds | None
    warnings: tuple[Notice, ...] = ()


class TextStage:
    """Both text encoders. Layers of the language model that do not fit stay in RAM and come over one by one."""

    def __init__(self, files: Files, precision: Precision, host: Host, clock: Clock) -> None:
        self._host = host
        with clock.stage("load_text"):
            load = partial(load_text_encoder, compute_dtype=precision.text_dtype)
            llm = load(files.llm, files.llm_tokenizer, kind="llama")
            clip = load(files.clip, files.clip_tokenizer, kind="clip")
        if not isinstance(llm, LlamaTextEncoder) or not isinstance(clip, ClipTextEncoder):
            raise WrongKind("The files of the language model and of the CLIP encoder are interchanged.")
        self._encoders = llm, clip
        self._offloaders = offload_text_encoder(clip), offload_text_encoder(llm)  # the larger one takes what is left
        self._known: dict[tuple[str, PromptTemplate], TextEmbeds] = {}

    def __call__(self, request: GenerateRequest, clock: Clock) -> Texts:
        """Encode the prompt, and the negative one if it is used. Raises InvalidTemplate, UnsupportedFile."""
        before = self._traffic
        with (
            clock.stage("encode_text") as log,
            bringing_layers(self._offloaders, self._host.check_interrupt),
        ):
            self._load()
            positive = self._encode(request.prompt, request.template)
            negative = request.used_negative
            other = None if negative is None else self._encode(negative, request.template)
            log.traffic, log.swapped_blocks = self._traffic - before, sum(part.num_swapped for part in self._offloaders)
            return Texts(positive, other, tuple(_prompt_cut(cut) for cut in positive.tokens_cut if cut))

    @property
    def _traffic(self) -> Traffic:
        return sum((part.traffic for part in self._offloaders), Traffic())

    def _load(self) -> None:
        """Bring the encoders to the device, of the language model's layers as many as there is room for."""
        self._host.request_memory(sum(part.num_bytes for part in self._offloaders) + TEXT_WORKING_BYTES)
        for offloader in self._offloaders:
            free = free_device_bytes(self._host.device)
            budget = None if free is None else max(0, free + offloader.loaded_bytes - TEXT_WORKING_BYTES)
            offloader.load(self._host.device, budget)
            if offloader.num_swapped:
                logger.info("%d layers of the language model stay in RAM and are copied", offloader.num_swapped)

    def _encode(self, prompt: str, template: PromptTemplate) -> TextEmbeds:
        """One prompt by itself, so that its numbers do not depend on those it shares a batch with; at most once."""
        key = prompt, template
        if key not in self._known:
            self._known[key] = encode_prompt(prompt, *self._encoders, template, host=self._host).to("cpu")
        return self._known[key]

    def close(self) -> None:
        for offloader in self._offloaders:
            offloader.go_home()
        del self._encoders, self._offloaders, self._known
        give_back(self._host.device)


class SampleStage:
    """The transformer. Blocks that do not fit beside the work of a request stay in RAM; swap: which do in any case."""

    def __init__(
        self,
        files: Files,
        precision: Precision,
        host: Host,
        clock: Clock,
        swap: BlockSwap = BlockSwap(),  # noqa: B008 (frozen)
    ) -> None:
        self._host = host
        self._attention, self._compiling = precision.attention, precision.compiling
        self.attention = ""
        """The backend that ran last, by its name."""
        with clock.stage("load_transformer"):
            host.request_memory(_file_size(files.transformer))
            self._model = load_transformer(
                files.transformer,
                precision.storage_dtype,
                precision.transformer_dtype(host.device),
                product=precision.product,
            )
            self._offloader = offload_transformer(self._model, swap)
        self._scaling = vae_scaling(files.vae)
        self._loras: dict[tuple[LoraChoice, ...], tuple[LoraUse, ...]] = {}
        self.cache_report: CacheReport | None = None
        """What the step cache did in the last video; None without one."""
        self._settled = SettledRuns()

    def __call__(
        self,
        request: GenerateRequest,
        texts: Texts,
        seed: int,
        clock: Clock,
        start: Tensor | None = None,
        step_cache: StepCache | None = None,
    ) -> Tensor:
        """The latents of one video, [1, C, T, H, W], float32, unscaled, on the CPU.

        start: [1, C, T, H, W], unscaled: latents to begin with, changed as much as the request's strength says.
        step_cache: in place of the request's own, such as a measurement. Raises NonFiniteOutput, InvalidSetting,
        OutOfMemory, and what the host raises when the user cancels.
        """
        with clock.stage("sample") as log:
            sigmas = make_sigmas(request.steps, request.shift)
            if start is None:
                start = torch.zeros(()).expand(1, self._model.config.out_channels, *request.latent_shape)
            else:
                sigmas = truncate_sigmas(sigmas, request.strength)
            run = SampleRun(
                self._model,
                texts.positive,
                texts.negative,
                sigmas,
                self._scaling,
                self._host,
                request.solver,
                request.guidance,
                request.rope,
                self._offloader,
                self._read_loras(request.loras),
                request.cache,
                backend=self._attention,
                compiling=self._compiling,
            )
            step_cache = step_cache or run.start_cache(request.latent_shape)
            before = self._offloader.traffic
            try:
                asked, room = run, self._room(run, request.latent_shape)
                run = self._load(run, request.latent_shape, room).attending(request.latent_shape)
                self.attention = run.attention.name
                logger.info("attention by %s", self.attention)
                ladder = Ladder(run)
                latents = run.make(start, seed, step_cache=step_cache, ladder=ladder)
                self._settled.learn(asked, ladder.run, request.latent_shape, room)
            finally:
                log.rungs = tuple(run.rungs)
                log.traffic, log.attention = self._offloader.traffic - before, self.attention
                log.swapped_blocks, log.uncompiled = self._offloader.num_swapped, run.uncompiled
            if log.uncompiled:
                clock.notices.append(Notice("uncompiled", f"The blocks ran uncompiled: {log.uncompiled}."))
            self.cache_report = step_cache.report if step_cache and request.cache else None
            log.skipped_steps = self.cache_report.skipped_steps if self.cache_report else None
            return latents

    def _room(self, run: SampleRun, latent_shape: tuple[int, int, int]) -> int | None:
        """Bytes of the device for weights and work together, after the host was asked for memory; None is no bound."""
        if free_device_bytes(self._host.device) is None:
            return None
        self._host.request_memory(self._offloader.num_bytes + run.working_bytes(latent_shape))
        free = free_device_bytes(self._host.device) or 0
        return free + self._offloader.loaded_bytes + self._offloader.memo_bytes  # the last is of the run's work

    def _load(self, run: SampleRun, latent_shape: tuple[int, int, int], room: int | None) -> SampleRun:
        """Bring the model to the device, of its blocks as many as leave room for the work; the run as it fits."""
        run, working = run.fitted(latent_shape, room)
        run, most = self._settled.begin(run, latent_shape, room)
        budget = None if room is None else max(0, room - working)
        if most is not None:
            budget = most if budget is None else min(budget, most)
        load_weights(run, self._offloader, budget)
        if self._offloader.num_swapped:
            logger.info("%d blocks stay in RAM and are copied when they are needed", self._offloader.num_swapped)
        logger.info("heads attend in %d groups", run.lean.head_groups)
        return run

    def _read_loras(self, choices: tuple[LoraChoice, ...]) -> tuple[LoraUse, ...]:
        """The LoRAs of a request; they stay for the next one with the same."""
        if choices not in self._loras:
            self._host.request_memory(sum(_file_size(choice.path) for choice in choices))
            self._loras = {choices: load_loras(choices, self._model.config)}
        return self._loras[choices]

    def close(self) -> None:
        self._offloader.go_home()
        del self._offloader, self._model, self._loras, self._settled
        give_back(self._host.device)


class PixelStage:
    """The VAE, both ways; or the tiny one, which only decodes, for previews."""

    def __init__(self, vae_file: Path, precision: Precision, host: Host, clock: Clock) -> None:
        self._host = host
        with clock.stage("load_vae") as log:
            host.request_memory(_file_size(vae_file))
            self._vae: CausalVideoVAE | TinyVAE = load_any_vae(
                vae_file, compute_dtype=precision.vae_dtype(host.device), device=host.device
            )
            log.traffic = _moved_to(host.device, self._vae)

    @property
    def is_preview(self) -> bool:
        return isinstance(self._vae, TinyVAE)

    def decode(self, latents: Tensor, tiles: TilesChoice, clock: Clock) -> Tensor:
        """Bytes [F, H, W, 3] on the CPU of unscaled latents [1, C, T, H, W]. Raises as `stream`."""
        size = _video_size(latents)

        def collect(parts: Iterator[Tensor], tiles: Tiles | None) -> Tensor:
            frames, done = torch.empty(*size, 3, dtype=torch.uint8), 0
            for part in parts:
                frames[done : done + len(part)] = part
                done += len(part)
            return frames

        return self.render(latents, tiles, clock, collect)

    def render(
        self,
        latents: Tensor,
        tiles: TilesChoice,
        clock: Clock,
        make: Callable[[Iterator[Tensor], Tiles | None], Result],
    ) -> Result:
        """make(parts, tiles): what becomes of the parts of `stream`. Called again with smaller tiles, and a notice,
        when memory runs out. Raises as `stream`, and what make raises.
        """

        asked = describe_tiles(tiles)

        def attempt(tiles: Tiles | None) -> Result:
            with closing(self.stream(latents, tiles, clock, asked)) as parts:  # or a kept error would keep them open
                return make(parts, tiles)

        return self._in_tiles("decode", tiles, _video_size(latents), clock, attempt)

    def _in_tiles(
        self,
        stage: str,
        choice: TilesChoice,
        video: tuple[int, int, int],
        clock: Clock,
        attempt: Callable[[Tiles | None], Result],
    ) -> Result:
        device = self._host.device
        work = VAEWork.of(self._vae, *video, device, is_encoding=stage == "encode_video")

        def tell(message: str, rung: str) -> None:
            logger.warning("%s", message)
            clock.step_down(stage, Notice("smaller_tiles", message), rung)

        return work.run(
            attempt,
            work.choose(choice, free_bytes(device)),
            STAGES[stage].title,
            STAGES[stage].advice,
            tell,
            lambda: give_back(device),
            lambda: free_bytes(device),
        )

    def stream(
        self, latents: Tensor, tiles: Tiles | None, clock: Clock, asked: str | None = None
    ) -> Generator[Tensor, None, None]:
        """The bytes of `decode` in parts [n, H, W, 3], each as soon as its frames are final.

        asked: the tiles that were asked for, in words. Only the time spent in here counts as decoding. A video that
        shows nothing is told after its last frame. Raises NonFiniteOutput, OutOfMemory, and what the host raises when
        the user cancels.
        """
        check_finite(latents, "latents", "The latents to decode")
        watch, is_first = FlatWatch(), True
        with closing(self._vae.decode_spans(latents.to(self._host.device), tiles, self._host)) as spans:
            while True:
                with clock.stage("decode", is_told=is_first) as log:
                    log.tiles, log.asked_tiles = describe_tiles(tiles), asked
                    part = _next_frames(spans)
                if part is None:
                    break
                is_first = False
                watch.look(part)
                yield part
                del part
        watch.warn()

    def encode(self, frames: Tensor, tiles: TilesChoice, clock: Clock) -> Tensor:
        """Unscaled latents [1, C, T, H, W], float32, on the CPU (the posterior's mean) of bytes [F, H, W, 3].

        Raises NonFiniteOutput, OutOfMemory, and what the host raises when the user cancels.
        """

        asked = describe_tiles(tiles)

        def attempt(tiles: Tiles | None) -> Tensor:
            with clock.stage("encode_video") as log:
                log.tiles, log.asked_tiles = describe_tiles(tiles), asked
                return self._vae.encode(pixels_from_frames(frames)[None], tiles, self._host).mean.float().cpu()

        count, height, width = frames.shape[:3]
        latents = self._in_tiles("encode_video", tiles, (count, height, width), clock, attempt)
        check_finite(latents, "encode", "The encoded latents")
        return latents

    def close(self) -> None:
        del self._vae
        give_back(self._host.device)


def _video_size(latents: Tensor) -> tuple[int, int, int]:
    """Frames, height and width in pixels of latents [1, C, T, H, W]."""
    frames, height, width = latents.shape[2:]
    return pixel_frames(frames), height * SPATIAL_COMPRESSION, width * SPATIAL_COMPRESSION


def _next_frames(spans: Iterator[Tensor]) -> Tensor | None:
    """The next span as bytes [n, H, W, 3] on the CPU; None after the last. Raises NonFiniteOutput."""
    pixels = next(spans, None)
    if pixels is None:
        return None
    check_finite(pixels, "decode", "The decoded pixels")
    return frames_from_pixels(pixels[0])


def _prompt_cut(cut: int) -> Notice:
    return Notice("prompt_cut", f"The prompt is too long: its last {cut} tokens are not used. Shorten it.")


def _moved_to(device: torch.device, *models: nn.Module) -> Traffic:
    """Of models that were loaded to a device."""
    return Traffic(0 if device.type == "cpu" else sum(map(module_bytes, models)))


def _file_size(path: Path) -> int:
    return path.stat().st_size

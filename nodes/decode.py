"""Decoding: latents to frames, and the tiles that both directions of the VAE share."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..hyvideo_lib.errors import InvalidSetting, NonFiniteOutput, OutOfMemory
from ..hyvideo_lib.geometry import SPATIAL_COMPRESSION, pixel_frames
from ..hyvideo_lib.memory.machine import gib
from ..hyvideo_lib.memory.ram import free_ram_bytes, free_swap_bytes
from ..hyvideo_lib.shortage import is_out_of_memory
from . import comfy_host
from .keep import keeping
from .node import CATEGORY, check_inputs, names_its_errors, reported
from .sockets import HYV_VAE, VAEHandle, short_dtype

if TYPE_CHECKING:
    from ..hyvideo_lib.pipeline import StageLog, VAEWork
    from ..hyvideo_lib.vae import Tiles

logger = logging.getLogger(__name__)

ADVICE = (
    "Close other programs and models, set the VAE's dtype to float16 in Load VAE, or make the video smaller or shorter."
)
TILE_MODES = ("reference", "fit", "custom", "none")
MemorySize = tuple[int, int, int]
"""Frames, height and width in pixels."""


def tile_inputs() -> list[Any]:
    """The widgets that say how the VAE cuts a video."""
    return [
        io.Combo.Input(
            "tiles",
            options=list(TILE_MODES),
            default=TILE_MODES[0],
            tooltip="How the video is cut to save memory. reference: 256 pixels and 64 frames, as in Tencent's code. "
            "fit: of the tiles that free memory allows, those with the least to compute: mostly longer ones, on small "
            "cards less wide. custom: the two numbers below. none: in one piece, best and by far the most memory.",
        ),
        io.Int.Input(
            "tile_size",
            default=256,
            min=32,
            max=4096,
            step=32,
            tooltip="Side of a tile in pixels, for custom: a multiple of 32. Smaller saves memory and shows more "
            "seams.",
        ),
        io.Int.Input(
            "tile_frames",
            default=64,
            min=16,
            max=2048,
            step=16,
            tooltip="Length of a tile in frames, for custom: a multiple of 16. Smaller saves memory; motion may jump.",
        ),
    ]


def check_tiles(mode: str, size: int, frames: int) -> None:
    """Raises InvalidTiles where the custom numbers are used and do not work."""
    if mode == "custom":
        from ..hyvideo_lib.vae import Tiles

        Tiles(size, frames)


def run_in_tiles(
    handle: VAEHandle,
    choice: tuple[str, int, int, bool],
    video: MemorySize,
    doing: str,
    host: comfy_host.ComfyHost,
    log: StageLog,
    work_fn: Callable[[Tiles | None], Tensor],
    is_encoding: bool = False,
) -> Tensor:
    """work_fn(tiles) with the VAE on its device; in smaller tiles when memory runs out.

    choice: the widgets. video: what is decoded or encoded. log: hears of the tiles. Raises OutOfMemory.
    """
    from ..hyvideo_lib.pipeline import VAEWork, describe_tiles

    device = handle.managed.load_device
    work = VAEWork.of(handle.vae, *video, device, is_encoding)

    def free() -> int:
        """With every other model moved away, so that the tiles, and with them the pixels, are the same whatever else is
        loaded."""
        room = comfy_host.room_bytes(device)
        if room is None:
            return comfy_host.free_bytes(device) - int(handle.managed.model_size() - handle.managed.loaded_size())
        return room - int(handle.managed.model_size())

    def attempt(tiles: Tiles | None) -> Tensor:
        log.tiles = describe_tiles(tiles)
        comfy_host.load(handle.managed, working_bytes=work.working_bytes(tiles))
        return work_fn(tiles)

    def tell(message: str, rung: str) -> None:
        logger.warning("%s", message)
        host.say(message)
        log.rungs += (rung,)

    chosen = choose_tiles(work, *choice, free)
    log.asked_tiles = choice[0] if choice[0] == "fit" else describe_tiles(chosen)
    return work.run(attempt, chosen, doing, ADVICE, tell, comfy_host.recover, free)


def choose_tiles(
    work: VAEWork, mode: str, size: int, frames: int, shared_norms: bool, free: Callable[[], int]
) -> Tiles | None:
    """The tiles of a mode; None is uncut. free: asked for bytes where it matters."""
    from ..hyvideo_lib.pipeline import FIT, FIT_SHARED
    from ..hyvideo_lib.vae import Tiles

    if mode == "fit":
        return work.choose(FIT_SHARED if shared_norms else FIT, free())
    if mode == "none":
        return None
    tiles = Tiles(size, frames) if mode == "custom" else Tiles()
    return work.choose(replace(tiles, shared_norms=shared_norms), None)


class Decode(io.ComfyNode):
    """HyvDecode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvDecode",
            display_name="HunyuanVideo Decode",
            category=f"{CATEGORY}/decode",
            description="Turns latents into frames. Connect Create Video and Save Video to get a file.",
            inputs=[
                HYV_VAE.Input("vae", tooltip="From Load VAE."),
                io.Latent.Input("latents", tooltip="From the sampler, or any HunyuanVideo latents of other nodes."),
                *tile_inputs(),
                io.Boolean.Input(
                    "shared_norms",
                    default=False,
                    optional=True,
                    tooltip="Decodes a small copy of the video first and norms all tiles by it: closer to no tiles, in "
                    "the time of one tile more. Off, each tile is normed by itself, as in Tencent's code.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "frames", display_name="frames", tooltip="All frames; several videos stand one after the other."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, tiles: str = TILE_MODES[0], tile_size: int = 256, tile_frames: int = 64) -> bool | str:
        values = {"tiles": tiles, "tile_size": tile_size, "tile_frames": tile_frames}
        return check_inputs(cls, values, lambda: check_tiles(tiles, tile_size, tile_frames))

    @classmethod
    @names_its_errors
    def execute(
        cls,
        vae: VAEHandle,
        latents: dict[str, Any],
        tiles: str = TILE_MODES[0],
        tile_size: int = 256,
        tile_frames: int = 64,
        shared_norms: bool = False,
    ) -> io.NodeOutput:
        samples = check_samples(latents, vae.vae.config.latent_channels)
        frames, height, width = pixel_frames(samples.shape[2]), *(n * SPATIAL_COMPRESSION for n in samples.shape[3:])
        host = comfy_host.ComfyHost(cls.hidden.unique_id, vae.managed.load_device)
        with reported(host) as log, keeping(*samples.split(1)):
            images = empty_frames(samples.shape[0] * frames, height, width)

            def decode(chosen: Tiles | None) -> Tensor:
                for row, out in zip(samples.split(1), images.split(frames), strict=True):
                    decode_into(out, vae, row, chosen, host)
                return images

            choice = tiles, tile_size, tile_frames, shared_norms
            run_in_tiles(vae, choice, (frames, height, width), "decoding", host, log, decode)
        return io.NodeOutput(images)


def empty_frames(*size: int) -> Tensor:
    """An uninitialised [F, H, W, 3], float32, in RAM. Raises OutOfMemory with numbers where RAM cannot hold it, which
    many systems tell only by ending the process that fills it.
    """
    num_bytes, free = 3 * 4 * math.prod(size), free_ram_bytes()
    try:
        if free is not None and num_bytes > free + free_swap_bytes():
            raise MemoryError
        return torch.empty(*size, 3)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    count, height, width = size
    raise OutOfMemory(
        f"There is no RAM for the frames: {count} of {width} x {height} pixels take {gib(num_bytes)}, and {gib(free)} "
        "are free. Close other programs, or make the video smaller or shorter, or fewer of them at once."
    )


def decode_into(
    out: Tensor, handle: VAEHandle, latents: Tensor, tiles: Tiles | None, host: comfy_host.ComfyHost
) -> None:
    """Fill out [F, H, W, 3], float32 in 0..1 on the CPU, with the frames of latents [1, C, T, H, W].

    Frames leave the device as they are done. Raises NonFiniteOutput.
    """
    from ..hyvideo_lib.video import FlatWatch

    host.stage("decoding", 0)
    done, watch = 0, FlatWatch()
    with closing(handle.vae.decode_spans(latents.to(host.device), tiles, host)) as spans:
        for pixels in spans:
            if not bool(torch.isfinite(pixels).all()):
                raise NonFiniteOutput(
                    f"Decoding in {short_dtype(pixels.dtype)} gave NaN or infinity; the video would have black frames. "
                    "Set the VAE's dtype to float32. If it is already, the VAE's file or the latents are damaged."
                )
            part = out[done : done + pixels.shape[2]]
            part.copy_(pixels[0].permute(1, 2, 3, 0)).div_(2).add_(0.5).clamp_(0, 1)
            watch.look(part)
            done += pixels.shape[2]
            del pixels
    watch.warn()


def check_samples(latents: dict[str, Any], channels: int) -> Tensor:
    """The tensor [B, C, T, H, W] of a LATENT; a still image's [B, C, H, W] becomes one frame. Raises InvalidSetting."""
    samples: Tensor = latents["samples"]
    if samples.ndim == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim != 5 or samples.shape[1] != channels or 0 in samples.shape:
        raise InvalidSetting(
            f"The latents are {list(latents['samples'].shape)}, but must be [videos, {channels}, frames, height, "
            "width]. They were made for another model. Take HunyuanVideo Empty Latents or Encode Video."
        )
    return samples


NODES = (Decode,)

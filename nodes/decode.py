"""Decoding: latents to frames, and the tiles that both directions of the VAE share."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..hyvideo_lib.errors import InvalidSetting, NonFiniteOutput
from ..hyvideo_lib.geometry import SPATIAL_COMPRESSION, pixel_frames
from ..hyvideo_lib.memory.estimate import vae_bytes
from ..hyvideo_lib.memory.fit import fit_tiles
from ..hyvideo_lib.pipeline import describe_tiles, measured
from ..hyvideo_lib.vae import Tiles
from . import comfy_host
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_VAE, VAEHandle, short_dtype

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
            "fit: the largest pieces that fit, closest to uncut. custom: the two numbers below. none: in one piece, "
            "best and by far the most memory.",
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
        Tiles(size, frames)


def choose_tiles(handle: VAEHandle, mode: str, size: int, frames: int, video: MemorySize) -> Tiles | None:
    """The tiles of a mode for a video of so many frames and pixels; None is uncut."""
    if mode == "custom":
        return Tiles(size, frames)
    if mode == "reference":
        return Tiles()
    if mode == "none":
        return None
    weights = handle.managed.model_size() - handle.managed.loaded_size()
    free = comfy_host.free_bytes(handle.managed.load_device) - weights
    found = fit_tiles(handle.vae.config.block_channels, *video, _item_size(handle), free)
    return Tiles(*found) if found else None


def load_vae_for(handle: VAEHandle, video: MemorySize, tiles: Tiles | None) -> None:
    """Bring the VAE to its device, with room for one piece of the video."""
    count, height, width = video
    if tiles:
        count, height, width = min(count, tiles.frames), min(height, tiles.size), min(width, tiles.size)
    work = vae_bytes(handle.vae.config.block_channels, count, height, width, _item_size(handle))
    comfy_host.load(handle.managed, working_bytes=work)


def _item_size(handle: VAEHandle) -> int:
    return next(handle.vae.parameters()).element_size()


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
    ) -> io.NodeOutput:
        samples = check_samples(latents, vae.vae.config.latent_channels)
        frames, height, width = pixel_frames(samples.shape[2]), *(n * SPATIAL_COMPRESSION for n in samples.shape[3:])
        host = comfy_host.ComfyHost(cls.hidden.unique_id, vae.managed.load_device)
        chosen = choose_tiles(vae, tiles, tile_size, tile_frames, (frames, height, width))
        with measured(host.device) as log:
            load_vae_for(vae, (frames, height, width), chosen)
            videos = [decode_one(vae, row, chosen, host) for row in samples.split(1)]
            log.tiles = describe_tiles(chosen)
        assert log.report is not None
        host.say(log.report.describe())
        return io.NodeOutput(videos[0] if len(videos) == 1 else torch.cat(videos))


def decode_one(handle: VAEHandle, latents: Tensor, tiles: Tiles | None, host: comfy_host.ComfyHost) -> Tensor:
    """Frames [F, H, W, 3] in 0..1, float32, on the CPU, of latents [1, C, T, H, W]. Raises NonFiniteOutput."""
    host.stage("decoding", 0)
    pixels = handle.vae.decode(latents.to(host.device), tiles, host)
    if not bool(torch.isfinite(pixels).all()):
        raise NonFiniteOutput(
            f"Decoding in {short_dtype(pixels.dtype)} gave NaN or infinity; the video would have black frames. Set the "
            "VAE's dtype to float32. If it is already, the VAE's file or the latents are damaged."
        )
    return (pixels[0].float().cpu() / 2 + 0.5).clamp_(0, 1).permute(1, 2, 3, 0).contiguous()


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

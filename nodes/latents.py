"""Latents to begin with: empty ones, a video's, and the sizes they should have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..hyvideo_lib.buckets import BASES, closest_bucket
from ..hyvideo_lib.errors import InvalidSetting, NonFiniteOutput
from ..hyvideo_lib.geometry import check_frames, check_size, latent_shape
from . import comfy_host
from .decode import TILE_MODES, check_tiles, run_in_tiles, tile_inputs
from .node import CATEGORY, NOT_LINKED, check_inputs, names_its_errors, reported
from .sockets import HYV_VAE, VAEHandle, short_dtype

if TYPE_CHECKING:
    from ..hyvideo_lib.vae import Tiles

LATENT_CHANNELS = 16
MAX_SIDE, MAX_FRAMES, MAX_BATCH = 4096, 2049, 64
FROM_IMAGE = "from the image"
PRESETS: dict[str, tuple[int, int]] = {
    "720p 16:9 (1280 x 720)": (1280, 720),
    "720p 9:16 (720 x 1280)": (720, 1280),
    "720p 4:3 (1104 x 832)": (1104, 832),
    "720p 3:4 (832 x 1104)": (832, 1104),
    "720p 1:1 (960 x 960)": (960, 960),
    "540p 16:9 (960 x 544)": (960, 544),
    "540p 9:16 (544 x 960)": (544, 960),
    "540p 4:3 (832 x 624)": (832, 624),
    "540p 3:4 (624 x 832)": (624, 832),
    "540p 1:1 (720 x 720)": (720, 720),
    "demo (64 x 64)": (64, 64),
}
"""Name to (width, height): the sizes that the released model was made for, and the demo's."""
IMAGE_PRESETS = {f"{FROM_IMAGE}, {name}": base for name, base in BASES.items()}


class EmptyLatents(io.ComfyNode):
    """HyvEmptyLatents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvEmptyLatents",
            display_name="HunyuanVideo Empty Latents",
            category=f"{CATEGORY}/latents",
            description="The size, length and number of the videos to make.",
            inputs=[
                io.Int.Input(
                    "width",
                    default=848,
                    min=16,
                    max=MAX_SIDE,
                    step=16,
                    tooltip="In pixels, a multiple of 16. Time grows faster than the number of pixels.",
                ),
                io.Int.Input(
                    "height", default=480, min=16, max=MAX_SIDE, step=16, tooltip="In pixels, a multiple of 16."
                ),
                io.Int.Input(
                    "frames",
                    default=73,
                    min=1,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip="4k + 1: 1 for an image, 73 for three seconds, up to 129 for the released model. Memory "
                    "and time grow with it.",
                ),
                io.Int.Input(
                    "batch",
                    default=1,
                    min=1,
                    max=MAX_BATCH,
                    tooltip="How many videos, from consecutive seeds. They are made one after the other, so memory "
                    "stays as for one.",
                ),
            ],
            outputs=[io.Latent.Output("latents", display_name="latents", tooltip="For the sampler.")],
        )

    @classmethod
    def validate_inputs(cls, width: int = 848, height: int = 480, frames: int = 73) -> bool | str:
        values = {"width": width, "height": height, "frames": frames}
        for part, check in (
            (("width", "height"), lambda: check_size(width, height)),
            (("frames",), lambda: check_frames(frames)),
        ):
            verdict = check_inputs(cls, {name: values[name] for name in part}, check)
            if verdict is not True:
                return verdict
        return True

    @classmethod
    @names_its_errors
    def execute(cls, width: int = 848, height: int = 480, frames: int = 73, batch: int = 1) -> io.NodeOutput:
        check_size(width, height)
        check_frames(frames)
        shape = (batch, LATENT_CHANNELS, *latent_shape(width, height, frames))
        return io.NodeOutput({"samples": torch.zeros(shape)})


class Size(io.ComfyNode):
    """HyvSize."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvSize",
            display_name="HunyuanVideo Size",
            category=f"{CATEGORY}/latents",
            description="Sizes that the model was trained for, by name or by the shape of an image.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, *IMAGE_PRESETS],
                    default="540p 16:9 (960 x 544)",
                    tooltip="A size of the released model, or the one nearest in shape to the image on the socket.",
                ),
                io.Int.Input(
                    "frames",
                    default=73,
                    min=1,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip="4k + 1; passed on. The released model makes up to 129.",
                ),
                io.Image.Input("image", optional=True, tooltip="Needed only for the presets that go by an image."),
            ],
            outputs=[
                io.Int.Output("width", display_name="width", tooltip="In pixels."),
                io.Int.Output("height", display_name="height", tooltip="In pixels."),
                io.Int.Output("frame_count", display_name="frames", tooltip="As given."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str, frames: int = 73, image: Any = NOT_LINKED) -> bool | str:
        verdict = check_inputs(cls, {"frames": frames}, lambda: check_frames(frames))
        if verdict is not True:
            return verdict
        return check_inputs(cls, {"preset": preset}, lambda: check_preset(preset, image))

    @classmethod
    @names_its_errors
    def execute(cls, preset: str, frames: int = 73, image: Tensor | None = None) -> io.NodeOutput:
        check_frames(frames)
        if preset in PRESETS:
            return io.NodeOutput(*PRESETS[preset], frames)
        check_preset(preset, NOT_LINKED if image is None else image)
        assert image is not None
        height, width = closest_bucket(image.shape[1], image.shape[2], IMAGE_PRESETS[preset])
        return io.NodeOutput(width, height, frames)


def check_preset(preset: str, image: Any) -> None:
    """Raises InvalidSetting where the size is to come from an image and none is connected."""
    if preset in IMAGE_PRESETS and image is NOT_LINKED:
        raise InvalidSetting(f"preset is {preset!r}, but no image is connected. Connect one, or choose another.")


class EncodeVideo(io.ComfyNode):
    """HyvEncodeVideo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvEncodeVideo",
            display_name="HunyuanVideo Encode Video",
            category=f"{CATEGORY}/latents",
            description="Turns frames into latents, for video to video and inpainting.",
            inputs=[
                HYV_VAE.Input("vae", tooltip="From Load VAE."),
                io.Image.Input(
                    "frames",
                    tooltip="4k + 1 frames, or one image. Sides must be multiples of 16; scale the frames first.",
                ),
                *tile_inputs(),
                io.Boolean.Input(
                    "sampled",
                    default=False,
                    tooltip="Off takes the mean, the same every time and right for almost everything; on draws from "
                    "the posterior with the seed.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Of the draw; without effect when taking the mean.",
                ),
            ],
            outputs=[io.Latent.Output("latents", display_name="latents", tooltip="For the sampler.")],
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
        frames: Tensor,
        tiles: str = TILE_MODES[0],
        tile_size: int = 256,
        tile_frames: int = 64,
        sampled: bool = False,
        seed: int = 0,
    ) -> io.NodeOutput:
        if vae.vae.cannot_encode:
            raise InvalidSetting(vae.vae.cannot_encode)
        count, height, width = frames.shape[:3]
        check_frames(count)
        check_size(width, height)
        host = comfy_host.ComfyHost(cls.hidden.unique_id, vae.managed.load_device)

        def encode(chosen: Tiles | None) -> Tensor:
            host.stage("encoding video", 0)
            pixels = (frames[..., :3] * 2 - 1).permute(3, 0, 1, 2)[None]  # [1, 3, F, H, W] in -1..1
            posterior = vae.vae.encode(pixels, chosen, host)
            generator = torch.Generator().manual_seed(seed)
            return posterior.sample(generator) if sampled else posterior.mean

        choice = tiles, tile_size, tile_frames, False
        size = count, height, width
        with reported(host) as log:
            latents = run_in_tiles(vae, choice, size, "encoding", host, log, encode, is_encoding=True)
        if not bool(torch.isfinite(latents).all()):
            raise NonFiniteOutput(
                f"Encoding in {short_dtype(latents.dtype)} gave NaN or infinity. Set the VAE's dtype to float32. If it "
                "is already, the VAE's file is damaged."
            )
        return io.NodeOutput({"samples": latents.float().cpu()})


NODES = (EmptyLatents, Size, EncodeVideo)

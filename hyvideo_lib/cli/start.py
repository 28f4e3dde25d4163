"""What a run begins with (nothing, a video, latents), and the size that follows where none was given."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, InvalidSetting
from ..geometry import SPATIAL_COMPRESSION, pixel_frames

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint import FileReport
    from ..pipeline import GenerateRequest
    from ..video import TakenVideo

WIDTH, HEIGHT, FRAMES, FPS = 848, 480, 73, 24.0


@dataclass(frozen=True, eq=False)
class Start:
    """Size and rate of a run in pixels, frames, frames per second; latents [1, C, T, H, W] or a video file's frames."""

    width: int
    height: int
    frames: int
    fps: float
    latents: Tensor | None = None
    video: TakenVideo | None = None

    @property
    def is_given(self) -> bool:
        return self.latents is not None or self.video is not None

    @property
    def kind(self) -> str:
        """As a plan calls it."""
        from ..pipeline.plan import LATENTS, NOISE, VIDEO

        return LATENTS if self.latents is not None else VIDEO if self.video is not None else NOISE


def find_start(options: Namespace) -> Start:
    """What --input-video, --input-latents and the size options say.

    Raises BadInput, FileMissing, FileUnreadable, WrongKind, InvalidSize, InvalidFrames.
    """
    from ..pipeline import load_latents

    if options.input_video and options.input_latents:
        raise BadInput("Both --input-video and --input-latents were given. A run can begin with one of them only.")
    if options.input_latents:
        return from_latents(options, *load_latents(options.input_latents))
    if options.input_video:
        return _from_video(options, options.input_video)
    return Start(*_given(options, WIDTH, HEIGHT, FRAMES, FPS))


def check_start(start: Start, request: GenerateRequest, reports: Mapping[str, FileReport]) -> None:
    """Hold what a run begins with to its request and files; reports: on those that are given, by role.

    Raises InvalidSize, InvalidFrames, InvalidSetting.
    """
    from ..pipeline import check_latents
    from ..pipeline.files import encodes

    vae = reports.get("vae")
    if start.latents is not None:
        channels = (vae.config or {})["latent_channels"] if vae else start.latents.shape[1]
        check_latents(start.latents, request, channels)
    if start.video is not None and vae and not encodes(vae):
        only = "only decodes previews" if vae.variant == "taehv" else "has only a decoder"
        raise InvalidSetting(
            f"--input-video needs a VAE that encodes, and {Path(vae.path).name} {only}. Give HunyuanVideo's own, "
            "encoder and decoder, as --vae, or begin with latents (--input-latents)."
        )


def from_latents(options: Namespace, latents: Tensor, settings: Mapping[str, Any]) -> Start:
    """Latents, and their size where the options give none; the rate is that of the settings they were made with."""
    height, width = (n * SPATIAL_COMPRESSION for n in latents.shape[3:])
    fps = settings.get("fps")
    rate = float(fps) if isinstance(fps, int | float) else FPS
    return Start(*_given(options, width, height, pixel_frames(latents.shape[2]), rate), latents=latents)


def _from_video(options: Namespace, path: Path) -> Start:
    from ..video import take_video

    taken = take_video(path, options.width, options.height, options.frames, options.fps)
    return Start(*taken.size, taken.frames, taken.fps, video=taken)


def _given(options: Namespace, width: int, height: int, frames: int, fps: float) -> tuple[int, int, int, float]:
    """The options of these names, each where it is given, else as it stands."""
    return (
        width if options.width is None else options.width,
        height if options.height is None else options.height,
        frames if options.frames is None else options.frames,
        fps if options.fps is None else options.fps,
    )

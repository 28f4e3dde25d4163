"""Video files as frames of the size and rate that a run wants."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .colour import to_rgb
from .ffmpeg import file_url, running
from .probe import VideoInfo, probe_video, unreadable
from .rate import exact_rate, is_same_rate


def read_frames(
    path: Path,
    width: int,
    height: int,
    frames: int,
    fps: float | Fraction | None = None,
    found: VideoInfo | None = None,
) -> Tensor:
    """The first frames as bytes [F, height, width, 3], at most `frames` of them.

    fps: None, or the file's own constant rate, takes its frames one by one; another resamples them in time. Scaled to
    cover the size and cropped around the middle. found: what `probe_video` said of the file.
    Raises FileMissing, FileUnreadable, UnsupportedFile, MissingPackage.
    """
    found = found or probe_video(path)
    time = timing(found, fps)
    data = _run(path, _filters(found, width, height, time), frames)
    if not data and time.startswith("fps="):  # of a clip shorter than one frame of that rate none is left
        data = _run(path, _filters(found, width, height, timing(found, None)), 1)
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(-1, height, width, 3)


def is_resampled(found: VideoInfo, fps: float | Fraction | None) -> bool:
    """Whether frames at this rate are others than the file's own, one by one."""
    if fps is None or found.is_still:
        return False
    return not (found.rate and found.is_constant and is_same_rate(exact_rate(fps), found.rate))


def timing(found: VideoInfo, fps: float | Fraction | None) -> str:
    """The filter that gives frames their times: a rate's, or one tick each, so that none is dropped or repeated."""
    if fps is not None and is_resampled(found, fps):
        return f"fps={exact_rate(fps)}"
    return "settb=1/25,setpts=N,fps=25"


def _filters(found: VideoInfo, width: int, height: int, time: str) -> str:
    shown_width, shown_height = found.shown_size
    factor = max(width / shown_width, height / shown_height)
    size = max(width, round(shown_width * factor)), max(height, round(shown_height * factor))
    colours = to_rgb(*size, found.pixel_format, found.matrix, found.is_full)
    # Cropped in RGB: 4:2:0 can be cut at every second pixel only.
    return f"{time},{colours},crop={width}:{height}"


def _run(path: Path, filters: str, frames: int) -> bytes:
    """What ffmpeg makes of the first video stream of a file."""
    output = ["-vf", filters, "-frames:v", str(frames), "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    with running(["-i", file_url(path), "-map", "0:v:0", *output]) as ffmpeg:
        data: bytes = ffmpeg.stdout.read()
        status = ffmpeg.finish()
    if status or (not data and not filters.startswith("fps=")):
        raise unreadable(path, ffmpeg)
    return data

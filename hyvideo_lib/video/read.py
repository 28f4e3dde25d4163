"""Video files as frames of the size and rate that a run wants."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import FileMissing, FileUnreadable
from .ffmpeg import file_url, running

_Y4M_SIZE = re.compile(rb"YUV4MPEG2 W(\d+) H(\d+) ")


def probe_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as a player shows them (rotated). Raises as `read_frames`."""
    # One frame in a format whose header says the size in plain text.
    data = _run(path, "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1")
    match = _Y4M_SIZE.match(data)
    if match is None:
        raise FileUnreadable(f"{path.name} holds no video. Give another file.")
    return int(match[1]), int(match[2])


def read_frames(path: Path, width: int, height: int, frames: int, fps: float) -> Tensor:
    """The first frames as bytes [F, height, width, 3], at most `frames` of them.

    Resampled in time to `fps`, scaled to cover the size and cropped around the middle.
    Raises FileMissing, FileUnreadable, MissingPackage.
    """
    cover = f"fps={fps:g},scale={width}:{height}:force_original_aspect_ratio=increase,crop={width}:{height}"
    data = _run(path, "-vf", cover, "-frames:v", str(frames), "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1")
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(-1, height, width, 3)


def _run(path: Path, *output: str) -> bytes:
    """What ffmpeg makes of the first video stream of a file."""
    if not path.is_file():
        raise FileMissing(f"There is no file {str(path)!r}. Check the name and the folder.")
    with running(["-i", file_url(path), "-map", "0:v:0", *output]) as ffmpeg:
        data: bytes = ffmpeg.stdout.read()
        status = ffmpeg.finish()
    if status or not data:
        raise FileUnreadable(
            f"{path.name} is not a video that ffmpeg can read ({ffmpeg.complaints[-300:] or 'it has no frames'}). "
            "Give another file."
        )
    return data

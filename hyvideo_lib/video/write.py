"""mp4 files that every player shows: H.264, 4:2:0, colours as BT.709 and marked so, the index in front."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import whole_file
from ..errors import DiskFull, RunFailed
from .colour import from_rgb
from .ffmpeg import file_url, running
from .rate import exact_rate
from .settings import replace_settings, settings_text

CRF = 14
"""x264's quality: small flat clips keep their colours, and nothing is seen to be lost; 23 is its own default."""
ROOM = 16384
"""Bytes left free for settings that are known only after the last frame."""
SOUND = "sound.m4a"
_NO_ROOM = ("No space left on device", "File too large", "Disk quota exceeded")
_GAVE_UP = (errno.EPIPE, errno.EINVAL)
"""What writing to a pipe gives whose reader ended (the second on Windows): its status and words say why it did."""
_SIGXFSZ = -25
_LITTLE = 2**20  # bytes; a disk with less is full, whatever the error said


def write_video(
    path: Path,
    frames: Iterable[Tensor],
    width: int,
    height: int,
    fps: float,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    final: Callable[[], Mapping[str, Any]] | None = None,
    sound: bytes | None = None,
) -> None:
    """Write frames [H, W, 3] (bytes) with the settings inside. `path` is complete or not there.

    final: asked after the last frame for settings that replace the first ones, at most ROOM bytes longer.
    sound: an m4a file, copied as it is. Whatever the iterable raises goes through. Raises OutputExists,
    OutputNotWritable, DiskFull, MissingPackage, RunFailed.
    """
    with whole_file(path, overwrite) as temporary, tempfile.TemporaryDirectory(prefix="hyvideo-") as folder:
        metadata = Path(folder, "metadata.txt")
        metadata.write_text(settings_text(settings, ROOM if final else 0), encoding="ascii")
        if sound is not None:
            Path(folder, SOUND).write_bytes(sound)
        arguments = _arguments(metadata, temporary, width, height, fps, has_sound=sound is not None)
        with running(arguments, feeds=True) as ffmpeg:
            written = 0
            for frame in frames:
                if not _reaches(ffmpeg.stdin.write, frame.contiguous().numpy().tobytes()):
                    break
                written += 1
            _reaches(ffmpeg.stdin.close)
            status = ffmpeg.finish()
        if not written:
            raise RunFailed(f"There are no frames to write to {path}.")
        if status:
            raise _failure(path, status, ffmpeg.complaints)
        if final:
            replace_settings(temporary, final())


def _reaches(call: Callable[..., object], *given: bytes) -> bool:
    """Whether a call on the pipe to ffmpeg went well. Raises OSError for what does not mean that ffmpeg ended."""
    try:
        call(*given)
    except OSError as error:
        if error.errno not in _GAVE_UP:
            raise
        return False
    return True


def _arguments(metadata: Path, output: Path, width: int, height: int, fps: float, has_sound: bool) -> list[str]:
    sound = ["-i", file_url(metadata.with_name(SOUND)), "-map", "2:a:0", "-c:a", "copy"] if has_sound else []
    return [
        *(
            "-y",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width}x{height}",
            "-r",
            str(exact_rate(fps)),
            "-i",
            "pipe:0",
        ),
        *("-f", "ffmetadata", "-i", file_url(metadata), *sound, "-map", "0:v", "-map_metadata", "1"),
        *("-vf", from_rgb(), "-pix_fmt", "yuv420p"),
        *("-c:v", "libx264", "-preset", "medium", "-crf", str(CRF)),
        *("-movflags", "+faststart", "-f", "mp4", file_url(output)),
    ]


def _failure(path: Path, status: int, complaints: str) -> RunFailed:
    free = shutil.disk_usage(path.parent).free
    if status == _SIGXFSZ or free < _LITTLE or any(text in complaints for text in _NO_ROOM):
        return DiskFull(
            f"There is no room left to write {path} ({free / 1e6:.0f} MB free, or a limit on the size of files). "
            "Free some space, or name a file on another disk."
        )
    return RunFailed(f"ffmpeg could not write {path} (exit status {status}): {complaints[-600:] or 'no reason given'}")

"""The sound of a file, cut to the frames that are taken of it, as bytes that an mp4 takes as they are."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

from .ffmpeg import file_url, running
from .probe import VideoInfo

BITRATE = "192k"
MAX_BYTES = 2**28


def read_sound(path: Path, found: VideoInfo, seconds: Fraction) -> tuple[bytes | None, str]:
    """An m4a file of the sound beside the first `seconds` of pictures, and what became of it in words.

    None, with the reason, where there is none or it cannot be read: a run needs no sound. AAC is copied, anything else
    becomes AAC.
    """
    if found.sound is None:
        return None, "It has no sound."
    is_copied = found.sound == "aac" and not found.start
    codec = ["-c:a", "copy"] if is_copied else ["-c:a", "aac", "-b:a", BITRATE]
    with tempfile.TemporaryDirectory(prefix="hyvideo-") as folder:
        output = Path(folder, "sound.m4a")
        cut = ["-ss", f"{float(found.start):.6f}", "-t", f"{float(seconds):.6f}"]
        source = [
            *(cut if found.start else cut[2:]),
            "-i",
            file_url(path),
            "-map",
            "0:a:0",
            "-vn",
            "-map_metadata",
            "-1",
        ]
        with running(["-y", *source, *codec, "-f", "mp4", file_url(output)]) as ffmpeg:
            status = ffmpeg.finish()
        size = output.stat().st_size if output.is_file() else 0
        if status or not 0 < size <= MAX_BYTES:
            return None, f"Its sound is lost: {found.sound} could not be read ({ffmpeg.complaints[-200:] or 'empty'})."
        return output.read_bytes(), "Its sound is kept" + ("." if is_copied else f", as AAC in place of {found.sound}.")

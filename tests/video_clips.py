"""Small video files made by ffmpeg itself, as other programs write them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from hyvideo_lib.video.ffmpeg import find_ffmpeg

NUMBERS = "color=black:s=64x48:r={rate}:d={seconds},geq=lum='16+5*N':cb=128:cr=128"
"""Frame n is of one grey, 16 + 5 n, in limited range."""
BEEP = "sine=f=1000:r=48000:d={seconds},volume='gt(t,{onset})':eval=frame"


def ffmpeg(*words: object, data: bytes | None = None) -> bytes:
    """What a command wrote to its stdout."""
    command = [find_ffmpeg(), "-v", "error", "-y", *map(str, words)]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def clip(path: Path, rate: object = 8, frames: int = 17, *output: object, onset: float | None = None) -> Path:
    """A clip of numbered greys; with a beep from `onset` seconds on if that is given."""
    seconds = frames / float(eval_rate(rate))
    inputs = ["-f", "lavfi", "-i", NUMBERS.format(rate=rate, seconds=seconds + 1)]
    if onset is not None:
        inputs += ["-f", "lavfi", "-i", BEEP.format(seconds=seconds, onset=onset)]
    ffmpeg(*inputs, "-frames:v", frames, "-crf", 10, *output, path)
    return path


def eval_rate(rate: object) -> float:
    top, _, bottom = str(rate).partition("/")
    return float(top) / float(bottom or 1)


def numbers(frames) -> list[int]:
    """Which frame of a numbered clip each one is."""
    grey = frames.float().mean(dim=(1, 2, 3)).numpy() * 219 / 255
    return [round(float(level)) for level in grey / 5]


def samples(path: Path) -> np.ndarray:
    """The sound of a file: 48,000 numbers per second."""
    data = ffmpeg("-i", path, "-map", "0:a:0", "-ac", 1, "-ar", 48000, "-f", "f32le", "pipe:1")
    return np.frombuffer(data, np.float32)

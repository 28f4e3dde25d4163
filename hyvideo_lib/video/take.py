"""A video or a picture as the input of a run: what was found in the file, what is taken of it, and why in words.

Where nothing else is asked, a file's frames are taken one by one at its own rate. Command line and scripts come here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InvalidFrames, InvalidSetting
from ..geometry import PIXELS_PER_TOKEN, TEMPORAL_COMPRESSION, check_frames, check_size, nearest_sizes
from .probe import VideoInfo, probe_video
from .rate import FPS_RANGE, check_fps, exact_rate, is_same_rate, rate_text
from .read import is_resampled, read_frames
from .sound import read_sound

MAX_FRAMES = 129
"""Of a longer video only so many are taken unless a number is asked for."""
STILL_FPS = 24.0
"""Of a picture, which has no rate."""


@dataclass(frozen=True, eq=False)
class TakenVideo:
    """What is taken of a file. video: bytes [F, H, W, 3]. fps: of these frames. sound: an m4a file beside them.

    remarks: what a person should know of it, a sentence each.
    """

    found: VideoInfo
    video: Tensor
    fps: float
    is_resampled: bool
    is_cut: bool
    sound: bytes | None
    remarks: tuple[str, ...]

    @property
    def frames(self) -> int:
        return len(self.video)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.video.shape[1:3]
        return width, height

    def sentences(self) -> str:
        """What was found, what is taken, and why, in one line."""
        return " ".join(_sentences(self))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for reports and for the settings in a file."""
        found, (width, height) = self.found, self.shown
        taken_width, taken_height = self.size
        return {
            "file": found.name,
            "found": {
                "width": width,
                "height": height,
                "frames": found.frames,
                "has_more_frames": found.has_more,
                "fps": float(found.rate) if found.rate else None,
                "rate": str(found.rate) if found.rate else None,
                "is_constant_rate": found.is_constant,
                "seconds": round(found.seconds, 3) if found.seconds is not None else None,
                "sound": found.sound,
            },
            "taken": {
                "width": taken_width,
                "height": taken_height,
                "frames": self.frames,
                "fps": self.fps,
                "rate": str(exact_rate(self.fps)),
                "seconds": None if found.is_still else round(self.frames / self.fps, 3),
                "resampled": self.is_resampled,
                "cut": self.is_cut,
                "sound": self.sound is not None,
            },
            "remarks": list(self.remarks),
        }

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height of what was found, in square pixels."""
        return self.found.shown_size


def take_video(
    path: Path,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
) -> TakenVideo:
    """Read a video or a picture for a run; what is None is the file's own, within what a run accepts.

    frames: 4k + 1, the first ones at the rate of the run. fps: other than the file's, resamples them in time.
    Raises FileMissing, FileUnreadable, UnsupportedFile, InvalidSize, InvalidFrames, InvalidSetting, MissingPackage.
    """
    if fps is not None:
        check_fps(fps)
    if frames is not None:
        check_frames(frames)
    found = probe_video(path)
    own_width, own_height = (nearest_sizes(size, PIXELS_PER_TOKEN)[0] for size in found.shown_size)
    width, height = own_width if width is None else width, own_height if height is None else height
    check_size(width, height)
    rate = _rate(found, fps)
    resampled = is_resampled(found, rate)
    wanted = MAX_FRAMES if frames is None else frames
    video = read_frames(path, width, height, wanted, rate, found)
    count, _ = nearest_sizes(len(video), TEMPORAL_COMPRESSION, 1)
    if frames is not None and count < frames:
        raise InvalidFrames(
            f"frames is {frames}, but {found.name} has {len(video)} at {rate_text(rate)} per second. "
            f"Use --frames {count} or a longer video."
        )
    total = _total(found, rate, resampled, len(video), wanted)
    sound, told = _sound(path, found, count / rate)
    reasons = [*_why_cut(count, len(video), total, frames, wanted), *([told] if told else [])]
    return TakenVideo(found, video[:count], float(rate), resampled, count < total, sound, (*found.remarks, *reasons))


def _rate(found: VideoInfo, fps: float | None) -> Fraction:
    """Of the run: what is asked for, else the file's."""
    if fps is not None:
        given = exact_rate(fps)
        return found.rate if found.rate and found.is_constant and is_same_rate(given, found.rate) else given
    if found.rate is None:
        return exact_rate(STILL_FPS)
    low, high = FPS_RANGE
    if not low <= found.rate <= high:
        raise InvalidSetting(
            f"{found.name} has {rate_text(found.rate)} frames per second, but a run takes {low:g} to {high:g}. Give "
            "--fps, to which it is then resampled."
        )
    return found.rate


def _total(found: VideoInfo, rate: Fraction, resampled: bool, read: int, wanted: int) -> int:
    """How many frames the whole file has at the rate of the run; counted where all of them were read."""
    if read < wanted:
        return read
    if resampled and found.length:
        return max(read, round(found.length * rate))
    return max(read, found.frames)


def _why_cut(count: int, read: int, total: int, asked: int | None, wanted: int) -> Iterator[str]:
    if asked is not None and count < total:
        yield f"The rest is left out, as {asked} frames are asked for."
    elif read == wanted < total:
        yield f"The rest is left out: {wanted} frames are taken unless another number is asked for (--frames)."
    elif count < read:
        left = read - count
        yield f"The last {'one is' if left == 1 else f'{left} are'} left out, as frames must be 4k + 1."


def _sound(path: Path, found: VideoInfo, seconds: Fraction) -> tuple[bytes | None, str | None]:
    if not found.is_still:
        return read_sound(path, found, seconds)
    return None, "Its sound is lost, as one frame has no length." if found.sound else None


def _sentences(taken: TakenVideo) -> Iterator[str]:
    found, (width, height) = taken.found, taken.shown
    if found.is_still:
        yield f"Input {found.name}: a picture of {width} x {height}."
        yield f"Taken: 1 frame{_fitted(taken)}."
    else:
        more = "more than " if found.has_more else ""
        varies = "" if found.is_constant else "about "
        at = f" at {varies}{rate_text(found.rate)} per second" if found.rate else ""
        at += f" ({more}{found.seconds:.2f} s)" if found.seconds is not None else ""
        yield f"Input {found.name}: {more}{found.frames} frames of {width} x {height}{at}."
        how = f"frames 1 to {taken.frames}" if taken.frames > 1 else "frame 1"
        how = f"{how if taken.is_cut else f'all {taken.frames} frames'}, one by one"
        if taken.is_resampled:
            why = "as asked" if found.is_constant else "as its rate varies"
            how = f"{taken.frames} frame{'s' * (taken.frames > 1)}, resampled from its own, {why}"
        rate = exact_rate(taken.fps)
        yield f"Taken: {how}, at {rate_text(rate)} per second ({taken.frames / taken.fps:.2f} s){_fitted(taken)}."
    yield from taken.remarks


def _fitted(taken: TakenVideo) -> str:
    (width, height), (new_width, new_height) = taken.shown, taken.size
    if (width, height) == (new_width, new_height):
        return ""
    cropped = " and cropped" if width * new_height != height * new_width else ""
    return f", scaled{cropped} to {new_width} x {new_height}"

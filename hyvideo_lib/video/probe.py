"""What a video or picture file holds, before its pixels are read: size, frames, rate, colours, sound."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..errors import FileMissing, FileUnreadable, UnsupportedFile
from .colour import HDR, UNMARKED, has_alpha, matrix_of
from .ffmpeg import Process, file_url, running
from .rate import find_rate

MAX_COUNTED = 10_000
"""Frames whose times are looked at; of a longer file only that it is longer is known."""
_LINES = 1000
_STILLS = {"png", "mjpeg", "webp", "gif", "apng", "bmp", "tiff", "jpeg2000", "jpegxl", "targa", "ppm", "pgm"}
"""Codecs of single pictures, whose rate is ffmpeg's invention."""
_SHOWN = re.compile(
    r"\[Parsed_showinfo_0 @ \S+\] (?:"
    r"config in time_base: \S+ frame_rate: (?P<rate>\d+/\d+)"
    r"|n: *0 .* fmt:(?P<format>\w+) .*sar:(?P<sar>\d+/\d+) s:(?P<width>\d+)x(?P<height>\d+) "
    r"|color_range:(?P<range>\S+) color_space:(?P<space>\S+) color_primaries:\S+ color_trc:(?P<trc>\S+))"
)
_SOUND = re.compile(r" {2}Stream #0:\d+.*?: Audio: (\w+)")
_PACKET = re.compile(r"0, *-?\d+, *(-?\d+),")
_NO_TIME = -(2**63)


@dataclass(frozen=True)
class VideoInfo:
    """A file's first video stream.

    width, height: as stored, turned as a player turns it. shape: of a pixel, width to height. frames: at most
    MAX_COUNTED, with `has_more` beyond. rate: per second, None of a still picture. start: of the first frame, seconds
    after the file's. length: of all frames, seconds, None of a still picture. matrix, is_full: of its YUV (`colour`).
    sound: its codec, or None. remarks: sentences for people.
    """

    name: str
    width: int
    height: int
    shape: Fraction
    frames: int
    has_more: bool
    rate: Fraction | None
    is_constant: bool
    start: Fraction
    length: Fraction | None
    pixel_format: str
    matrix: str | None
    is_full: bool
    sound: str | None
    remarks: tuple[str, ...] = ()

    @property
    def is_still(self) -> bool:
        return self.frames == 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height in square pixels, as a player shows it."""
        return max(1, round(self.width * self.shape)), self.height

    @property
    def seconds(self) -> float | None:
        return None if self.length is None else float(self.length)


def probe_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as a player shows them. Raises as `probe_video`."""
    return probe_video(path).shown_size


def probe_video(path: Path) -> VideoInfo:
    """Look at a file: one frame is decoded, the others are counted.

    Raises FileMissing, FileUnreadable, UnsupportedFile, MissingPackage.
    """
    if not path.is_file():
        raise FileMissing(f"There is no file {str(path)!r}. Check the name and the folder.")
    counted = ["-map", "0:v:0", "-c", "copy", "-frames:v", str(MAX_COUNTED + 1), "-f", "framecrc", "pipe:1"]
    shown = ["-map", "0:v:0", "-vf", "showinfo", "-frames:v", "1", "-f", "null", "-"]
    with running(["-nostats", "-i", file_url(path), *counted, *shown], level="info", kept_lines=_LINES) as ffmpeg:
        packets = ffmpeg.stdout.read().decode("ascii", "replace")
        status = ffmpeg.finish()
    facts: dict[str, str] = {}
    for line in ffmpeg.lines:
        if match := _SHOWN.match(line):
            facts |= {name: value for name, value in match.groupdict().items() if value}
    if status or "format" not in facts:
        raise unreadable(path, ffmpeg)
    sound = next((match[1] for line in ffmpeg.lines if (match := _SOUND.match(line))), None)
    try:
        return _info(path.name, facts, packets, sound)
    except UnsupportedFile as error:
        raise UnsupportedFile(f"{path.name} cannot be read: {error}") from error


def unreadable(path: Path, ffmpeg: Process) -> FileUnreadable:
    """The error for a file that ffmpeg gave up on."""
    return FileUnreadable(
        f"{path.name} is not a video that ffmpeg can read ({ffmpeg.complaints[-300:] or 'it has no frames'}). "
        "Give another file."
    )


def _info(name: str, facts: dict[str, str], packets: str, sound: str | None) -> VideoInfo:
    count, shown, codec = _times(packets)
    said = _fraction(facts.get("rate", "0/0"))
    rate, is_constant = find_rate(shown, said)
    if count == 1 and codec in _STILLS:
        rate = None
    length = None
    if rate and count > 1:
        length = count / rate if is_constant else shown[-1] - shown[0] + 1 / rate
    width, height, form = int(facts["width"]), int(facts["height"]), facts["format"]
    space, span = facts.get("space", "unknown"), facts.get("range", "unknown")
    matrix = matrix_of(space, form, width, height)
    remarks = []
    if matrix and space in UNMARKED:
        remarks.append(f"Its colours are not marked and taken as {matrix.upper().replace('BT', 'BT.')}, by its size.")
    if facts.get("trc") in HDR:
        remarks.append(f"It is HDR ({HDR[facts['trc']]}), which is not converted: its colours come out pale.")
    if has_alpha(form):
        remarks.append("Its transparency, if it has any, is dropped.")
    return VideoInfo(
        name=name,
        width=width,
        height=height,
        shape=_fraction(facts["sar"]) or Fraction(1),
        frames=min(max(1, count), MAX_COUNTED),
        has_more=count > MAX_COUNTED,
        rate=rate,
        is_constant=is_constant,
        start=max(Fraction(0), shown[0]) if shown else Fraction(0),
        length=length,
        pixel_format=form,
        matrix=matrix,
        is_full=span in ("pc", "full", "jpeg") or (span in UNMARKED and form.startswith("yuvj")),
        sound=sound,
        remarks=tuple(remarks),
    )


def _times(packets: str) -> tuple[int, list[Fraction], str]:
    """How many frames there are, when they are shown (rising; none of them where one has no time), and the codec."""
    base, codec, stamps = Fraction(1), "", []
    for line in packets.splitlines():
        if line.startswith("#tb 0: "):
            base = _fraction(line[7:]) or base
        elif line.startswith("#codec_id 0: "):
            codec = line[13:]
        elif match := _PACKET.match(line):
            stamps.append(int(match[1]))
    return len(stamps), [] if _NO_TIME in stamps else [stamp * base for stamp in sorted(stamps)], codec


def _fraction(text: str) -> Fraction | None:
    """A positive fraction such as 24/1; None for 0/0 and the like."""
    top, _, bottom = text.strip().partition("/")
    if not (top.isdecimal() and bottom.isdecimal() and int(top) and int(bottom)):
        return None
    return Fraction(int(top), int(bottom))

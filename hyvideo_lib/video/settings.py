"""The settings of a run inside its mp4: one JSON object in the comment tag, written by ffmpeg, read back by hand.

mp4 is boxes in boxes, each `size, type, body` (ISO/IEC 14496-12); the comment lies at moov/udta/meta/ilst/(c)cmt/data.
The reader follows that one path, trusts no size, and needs no ffmpeg.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import FileMissing, FileTruncated, FileUnreadable, RunFailed

MARK = "hyvideo"
"""The key (its value is our version) by which a comment is known to be ours."""
_PATH = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")
_SKIPPED = {b"meta": 4, b"data": 8}
"""Bytes between a box's header and what it holds: version and flags; type and locale of a value."""
_MAX_BOXES = 10_000
_MAX_COMMENT = 2**24


def settings_text(settings: Mapping[str, Any], room: int = 0) -> str:
    """The settings as an ffmetadata file. room: bytes left free for `replace_settings`."""
    return ";FFMETADATA1\ncomment=" + re.sub(r"([=;#\\\n])", r"\\\1", _to_json(settings)) + " " * room + "\n"


def _to_json(settings: Mapping[str, Any]) -> str:
    """In plain ASCII, so a prompt may hold any character."""
    return json.dumps({**settings}, ensure_ascii=True, allow_nan=False)


def is_mp4(path: Path) -> bool:
    """Whether a file begins as an mp4 does. Raises FileMissing, FileUnreadable."""
    with _open(path) as file:
        return file.read(8)[4:] == b"ftyp"


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that an mp4 of ours was made with; None for another's.

    Raises FileMissing, FileUnreadable, FileTruncated.
    """
    with _open(path) as file:
        span = _find_comment(file, path)
        if span is None or span.end - span.start > _MAX_COMMENT:
            return None
        file.seek(span.start)
        return _parse(file.read(span.end - span.start))


def replace_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write other settings over those of an mp4 that was made with room for them.

    What is known only when the last frame is made cannot stand in what ffmpeg is given before the first. Raises
    RunFailed where the room is too small, and as `read_settings`.
    """
    with _open(path) as file:
        span = _find_comment(file, path)
    text = _to_json(settings).encode("ascii")
    room = span.end - span.start if span else 0
    if span is None or len(text) > room:
        raise RunFailed(f"{path.name} has {room} bytes for its settings, but they are {len(text)} long.")
    with path.open("r+b") as file:
        file.seek(span.start)
        file.write(text.ljust(room))


def _find_comment(file: BinaryIO, path: Path) -> _Box | None:
    """Where an mp4's comment lies; None if it has none. Raises FileTruncated."""
    span = _Box(b"", 0, file.seek(0, 2))
    for kind in _PATH:
        inner = next((box for box in list(_boxes(file, span, path)) if box.kind == kind), None)
        if inner is None:
            if kind == b"moov":
                raise FileTruncated(f"{path.name} has no index of its frames: it is cut short, or is no mp4.")
            return None
        span = inner
    return span


class _Box(NamedTuple):
    kind: bytes
    start: int  # of the body
    end: int


def _boxes(file: BinaryIO, within: _Box, path: Path) -> Iterator[_Box]:
    """The boxes that fill a span. Raises FileTruncated where one would reach beyond it."""
    position = within.start
    for _ in range(_MAX_BOXES):
        if position == within.end or (within.kind and position + 8 > within.end):
            return  # within a box, QuickTime ends lists with four zero bytes
        file.seek(position)
        head = file.read(16)
        size, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:  # a long box: the size follows in 8 bytes
            size, header = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:  # the last box: up to the end
            size = within.end - position
        if size < header or position + size > within.end:
            raise FileTruncated(f"{path.name} is cut short or damaged at byte {position}.")
        end = position + size
        yield _Box(kind, min(position + header + _SKIPPED.get(kind, 0), end), end)
        position = end


def _parse(comment: bytes) -> dict[str, Any] | None:
    try:
        settings = json.loads(comment.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) and MARK in settings else None


def _open(path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would wait for whoever fills it
            raise FileUnreadable(f"{path} is a pipe or a device, not a file.")
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise FileMissing(f"There is no file {str(path)!r}. Check the name and the folder.") from error
    except OSError as error:
        raise FileUnreadable(f"{path} cannot be opened: {error.strerror or error}.") from error

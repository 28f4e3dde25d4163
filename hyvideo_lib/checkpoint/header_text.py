"""The JSON of a safetensors header as text, and its metadata, in memory that a hostile file cannot choose.

The format allows 100 MB, which training programs fill with the history of a run. Python keeps a text in one, two or
four bytes for each sign, by the widest of them: one sign of another script in such a history would take four times its
size, and once more when it is parsed. In a long header such signs therefore stand as JSON writes them, a backslash, u
and four digits. What is inside quotation marks costs what it is long; what is counted is what becomes an object.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from .header import require

PIECE = 2**17
FREE_BYTES = 2**21
"""Of a header whose signs are taken as they are, whatever that costs."""
FREE_GROWTH = 2**22
"""Bytes that wide signs may take beyond those of the file; as many when they are written out."""
MAX_BACKSLASHES = 128
MAX_KEPT = 2**23
"""Characters of metadata that are kept."""
SHOWN = 5
_WIDE = re.compile(r"[^\x00-\xff]")
_WIDEST = re.compile("[\U00010000-\U0010ffff]")
_PAIR, _NARROW = "\x01", "\x02"
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOTE = "Signs of other scripts in its long metadata stand as \\u and four digits, or as ?."


def read_text(file: BinaryIO, length: int) -> tuple[str, tuple[str, ...]]:
    """The next `length` bytes as text, and notes on it. Raises ValueError, of which UnicodeDecodeError is one."""
    if length <= FREE_BYTES:
        return file.read(length).decode("utf-8"), ()
    start = file.tell()
    count, width, has_escapes = 0, 1, False
    for piece in _pieces(file, length):
        count, width = count + len(piece), max(width, _width(piece))
        has_escapes |= _write_escapes_out(piece) != piece
    file.seek(start)
    if not has_escapes and count * width <= length + FREE_GROWTH:
        return file.read(length).decode("utf-8"), ()  # only one copy stays
    return _narrowed(_pieces(file, length), length + FREE_GROWTH), (_NOTE,)


def _pieces(file: BinaryIO, length: int) -> Iterator[str]:
    """The text in pieces, none of which ends within an escaped sign. Raises ValueError."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""
    for start in range(0, length, PIECE):
        data = file.read(min(PIECE, length - start))
        piece = rest + decoder.decode(data, final=start + PIECE >= length)
        end = piece.rfind("\\", -3)
        end = len(piece[:end].rstrip("\\")) if end >= 0 else len(piece)
        piece, rest = piece[:end], piece[end:]
        require(len(rest) <= MAX_BACKSLASHES, f"it has more than {MAX_BACKSLASHES} backslashes in a row")
        yield piece
    yield rest


def _narrowed(pieces: Iterator[str], room: int) -> str:
    """The text in one byte for each sign: wide ones written out while there is room for that, then as ?.

    room: about as many bytes as it will have. Taken at once, they leave no holes in the process's memory.
    """
    text, end, growth = bytearray(room), 0, 0
    for piece in pieces:
        piece = _write_escapes_out(piece)
        if _width(piece) > 1:
            written = _WIDE.sub(_write_out, piece)
            growth += len(written) - len(piece)
            piece = written if growth <= FREE_GROWTH else _WIDE.sub("?", piece)
        data = piece.encode("latin-1")
        text[end : end + len(data)] = data
        end += len(data)
    return str(memoryview(text)[:end], "latin-1")


def _write_escapes_out(piece: str) -> str:
    """The piece with its escaped wide signs as text that says them. Pairs of backslashes are no escapes."""
    if "\\u" not in piece or _PAIR in piece or _NARROW in piece:
        return piece  # JSON knows none of the stand-ins, and will say so
    alone = piece.replace("\\\\", _PAIR).replace("\\u00", _NARROW)
    if "\\u" not in alone:
        return piece
    return alone.replace("\\u", f"{_PAIR}u").replace(_NARROW, "\\u00").replace(_PAIR, "\\\\")


def structure_of(text: str) -> Iterator[str]:
    """What of a JSON text stands outside its strings, in pieces."""
    is_inside, rest = False, ""
    for start in range(0, len(text), PIECE):
        piece = rest + text[start : start + PIECE]
        odd = (len(piece) - len(piece.rstrip("\\"))) % 2
        rest, piece = piece[len(piece) - odd :], piece[: len(piece) - odd]
        parts = piece.replace("\\\\", "").replace('\\"', "").split('"')
        yield "".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0
    yield rest


def as_metadata(found: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Metadata as the format has them, text by text, and notes on what is otherwise.

    A number, a list or a table becomes its JSON, which is what its writer meant; null says nothing. Text that is no
    Unicode is left out, as it could not be written again; and so are the longest entries beyond MAX_KEPT, histories of
    a training run that nobody reads here.
    """
    if not isinstance(found, Mapping):
        return {}, (f"Its metadata is no table ({json.dumps(found)[:60]}), and is not read.",)
    metadata: dict[str, str] = {}
    changed: list[str] = []
    dropped: list[str] = []
    for name, value in found.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if value is None or _is_broken(name) or _is_broken(text):
            dropped.append(name)
            continue
        if text is not value:
            changed.append(name)
        metadata[name] = text
    room = MAX_KEPT
    lengths = sorted((len(name) + len(text), name) for name, text in metadata.items())
    long = []
    for length, name in lengths:
        room -= length
        if room < 0:
            long.append(name)
            del metadata[name]
    notes = (
        _listed("Long metadata, read past", long),
        _listed("Metadata that is not text, read as JSON", changed),
        _listed("Metadata without a text, not read", dropped),
    )
    return metadata, tuple(filter(None, notes))


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{what}: {len(names)} ({', '.join(ascii(name[:40]) for name in names[:SHOWN])}{more})."


def _is_broken(text: str) -> bool:
    return not text.isascii() and _SURROGATE.search(text) is not None


def _width(text: str) -> int:
    """Bytes that each sign of a text takes."""
    if text.isascii() or _WIDE.search(text) is None:
        return 1
    return 2 if _WIDEST.search(text) is None else 4


def _write_out(hit: re.Match[str]) -> str:
    """A sign as two backslashes, u and digits: once parsed, a text that says it."""
    return json.dumps(hit[0])[1:-1].replace("\\", "\\\\")

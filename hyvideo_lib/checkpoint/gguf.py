"""The header of GGUF files: metadata of typed values, then a table of tensors, then their data.

The format (ggml-org/ggml, docs/gguf.md), little-endian: "GGUF", version, number of tensors, number of metadata entries;
strings are a length and that many bytes; a tensor is described by its name, its dimensions with the innermost first,
the number of its type, and its place in the data, which begin at the next multiple of the alignment. ComfyUI's files
keep a tensor's true shape, where four dimensions do not hold it, in the metadata under `comfy.gguf.orig_shape.<name>`.

Read piece by piece, each length checked against the file before it is believed. Long arrays (a tokenizer's vocabulary)
are stepped over; `read_gguf_metadata` returns them to those who want them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from ..errors import FileTruncated, FileUnreadable, UnsupportedFile
from ..quant.ggml import GGML_FORMATS
from .header import (
    MAX_DIMS,
    MAX_NAME,
    MAX_TENSORS,
    Header,
    TensorInfo,
    align,
    check_layout,
    check_name,
    check_parts,
    check_shape,
    open_file,
    require,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
MAX_HEADER_BYTES = 100_000_000  # a Llama-3 vocabulary with its merges takes about 8 MB
MAX_ENTRIES = MAX_TENSORS  # of metadata; some converters write one for each tensor
MAX_ELEMENTS = 1_000_000  # of arrays of texts together; the largest vocabularies and their merges have half a million
MAX_KEY = 1024  # characters
MAX_ALIGNMENT = 2**20
DEFAULT_ALIGNMENT = 32
PARTS_OF_A_TENSOR = 10  # what a tensor or an entry costs, counted as `header.check_parts` counts
SHOWN_ELEMENTS = 64  # arrays of numbers up to here stand in Header.metadata

# Number in the file -> name. Those that are plain numbers carry torch's name, the block formats the lower-case one.
GGML_TYPES: Mapping[int, str] = MappingProxyType(
    {0: "float32", 1: "float16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1", 10: "q2_k"}
    | {11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs"}
    | {19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "int8", 25: "int16", 26: "int32"}
    | {27: "int64", 28: "float64", 29: "iq1_m", 30: "bfloat16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4"}
)
PLAIN_BYTES: Mapping[str, int] = MappingProxyType(
    {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8}
)

# Type number of a metadata value -> letter of `struct`. Strings and arrays have no fixed size.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def read_gguf_header(file: BinaryIO, path: Path, file_size: int) -> Header:
    """The header of an open GGUF file, checked; touches no tensor.

    Values of the metadata become text: numbers and short arrays as JSON, long arrays as a note of their length.
    Raises FileTruncated, FileUnreadable or UnsupportedFile (version, byte order, a type of tensor, parts of a model).
    """
    reader = _Reader(file, path, file_size)

    def read() -> Header:
        num_tensors, metadata = _read_metadata(reader, keeps_long=False)
        _refuse_parts(path, metadata, num_tensors)
        tensors = _read_tensors(reader, num_tensors, metadata)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        is_power = type(alignment) is int and 0 < alignment <= MAX_ALIGNMENT and not alignment & (alignment - 1)
        require(is_power, f"its alignment is {alignment!r}, not a power of two")
        data_start = align(reader.position, alignment)
        placed = {
            name: TensorInfo(name, info.dtype, info.shape, data_start + info.start, data_start + info.end)
            for name, info in tensors.items()
        }
        check_layout(placed, path, data_start, file_size, "GGUF", alignment)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        return Header(path, MappingProxyType(placed), MappingProxyType(texts), file_size, format="gguf")

    return _in_words(path, read)


def read_gguf_metadata(path: str | Path) -> dict[str, Any]:
    """All metadata of a GGUF file as Python values, arrays as lists: a tokenizer's vocabulary is among them.

    Raises as `read_header`.
    """
    path = Path(path)
    with open_file(path) as file:
        reader = _Reader(file, path, file.seek(0, 2))
        file.seek(0)
        return _in_words(path, lambda: _read_metadata(reader, keeps_long=True)[1])


class _Reader:
    """A file read from its beginning, never beyond its end nor beyond what a header may have."""

    def __init__(self, file: BinaryIO, path: Path, file_size: int) -> None:
        self._file = file
        self._path = path
        self.file_size = file_size
        self._strings = 0
        self.position = 0

    def take(self, count: int) -> bytes:
        self._check(count)
        self.position += count
        found = self._file.read(count)
        if len(found) != count:
            raise FileTruncated(f"{self._path.name} became shorter while it was read. Download or copy it again.")
        return found

    def skip(self, count: int) -> None:
        self._check(count)
        self.position += count
        self._file.seek(self.position)

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        """`count` numbers of a `struct` letter."""
        size = struct.calcsize(f"<{code}")
        return struct.unpack(f"<{count}{code}", self.take(size * count))

    def number(self, code: str) -> Any:
        return self.numbers(code)[0]

    def text(self, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.number("Q")
        require(length <= limit, f"a text of {length} bytes stands where {limit} are the most")
        return self.take(length).decode("utf-8")

    def strings(self, count: int, keeps: bool) -> list[str]:
        """An array's strings; without `keeps` they are stepped over."""
        self._strings += count
        require(self._strings <= MAX_ELEMENTS, f"its arrays hold more than {MAX_ELEMENTS} texts")
        self._check(8 * count)
        if keeps:
            return [self.text() for _ in range(count)]
        self._step_over(count)
        return []

    def _step_over(self, count: int) -> None:
        """Pass by so many texts. Without `take`: there may be millions, in a file of nothing else."""
        read, position, limit = self._file.read, self.position, min(self.file_size, MAX_HEADER_BYTES)
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            position += 8 + length
            if position > limit:
                self.position = position - length
                self._check(length)
            read(length)
        self.position = position

    def _check(self, count: int) -> None:
        end = self.position + count
        require(end <= MAX_HEADER_BYTES, f"its header claims more than {MAX_HEADER_BYTES} bytes")
        if end > self.file_size:
            raise FileTruncated(
                f"{self._path.name} is cut short inside its header: it has {self.file_size} bytes, {end} or more are "
                "needed. Download or copy it again."
            )


def _read_metadata(reader: _Reader, keeps_long: bool) -> tuple[int, dict[str, Any]]:
    """(number of tensors, metadata), from the beginning of the file on."""
    require(reader.take(4) == MAGIC, "it does not begin with GGUF")
    version = reader.number("I")
    if version not in VERSIONS:
        order = " in the byte order of other processors" if version & 0xFFFF == 0 else ""
        raise UnsupportedFile(
            f"its version is {version}{order}; versions {' and '.join(map(str, VERSIONS))} in little-endian order are "
            "read. Use a newer file, or convert it with a newer llama.cpp."
        )
    num_tensors, num_entries = reader.numbers("Q", 2)
    require(num_tensors <= MAX_TENSORS, f"it claims {num_tensors} tensors, no known model has over {MAX_TENSORS}")
    require(num_entries <= MAX_ENTRIES, f"it claims {num_entries} metadata entries, over {MAX_ENTRIES}")
    check_parts(PARTS_OF_A_TENSOR * (num_tensors + num_entries), "parts", reader.file_size)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = reader.text(MAX_KEY)
        require(key not in metadata, f"{key[:MAX_NAME]!r} stands in its metadata twice")
        metadata[key] = _read_value(reader, key, keeps_long)
    return num_tensors, metadata


def _read_value(reader: _Reader, key: str, keeps_long: bool) -> Any:
    kind = reader.number("I")
    if kind in SCALARS:
        return reader.number(SCALARS[kind])
    if kind == STRING:
        return reader.text()
    require(kind == ARRAY, f"the metadata entry {key[:MAX_NAME]!r} has the unknown type {kind}")
    element, count = reader.number("I"), reader.number("Q")
    require(element != ARRAY, f"the metadata entry {key[:MAX_NAME]!r} is an array of arrays")
    if element == STRING:
        texts = reader.strings(count, keeps_long)
        return texts if keeps_long else f"({count} texts)"
    require(element in SCALARS, f"the metadata entry {key[:MAX_NAME]!r} has elements of the unknown type {element}")
    if count <= (MAX_ELEMENTS if keeps_long else SHOWN_ELEMENTS):
        return list(reader.numbers(SCALARS[element], count))
    reader.skip(count * struct.calcsize(f"<{SCALARS[element]}"))
    return f"({count} numbers)"


def _read_tensors(reader: _Reader, count: int, metadata: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The table of tensors; start and end are counted from the beginning of the data."""
    tensors: dict[str, TensorInfo] = {}
    for _ in range(count):
        name = reader.text(4 * MAX_NAME)
        check_name(name)
        require(name not in tensors, f"{name!r} stands in it twice")
        num_dims = reader.number("I")
        require(num_dims <= MAX_DIMS, f"{name!r} has {num_dims} dimensions")
        sizes = reader.numbers("Q", num_dims)
        type_number, offset = reader.number("I"), reader.number("Q")
        require(offset < 2**63, f"{name!r} has an absurd offset")
        dtype = _type_name(name, type_number)
        shape = _original_shape(name, sizes[::-1], metadata)
        check_shape(name, shape)
        tensors[name] = TensorInfo(name, dtype, shape, offset, offset + _num_bytes(name, dtype, shape))
    return tensors


def _type_name(name: str, number: int) -> str:
    known = GGML_TYPES.get(number)
    if known not in PLAIN_BYTES and known not in GGML_FORMATS:
        accepted = ", ".join((*GGML_FORMATS, "float16", "bfloat16", "float32")).upper()
        raise UnsupportedFile(
            f"{name!r} is stored as {known.upper() if known else f'GGML type {number}'}, which is not read here; use a "
            f"file of {accepted}."
        )
    return str(known)


def _original_shape(name: str, shape: tuple[int, ...], metadata: Mapping[str, Any]) -> tuple[int, ...]:
    original = metadata.get(ORIGINAL_SHAPE + name)
    if original is None:
        return shape
    is_shape = isinstance(original, list) and len(original) <= MAX_DIMS and all(_is_size(size) for size in original)
    require(is_shape, f"the metadata gives {name!r} the shape {str(original)[:60]}")
    require(
        math.prod(original) == math.prod(shape),
        f"the metadata gives {name!r} the shape {original}, its {math.prod(shape)} numbers do not fill it",
    )
    return tuple(original)


def _num_bytes(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    if dtype in PLAIN_BYTES:
        return math.prod(shape) * PLAIN_BYTES[dtype]
    block = GGML_FORMATS[dtype]
    width = shape[-1] if shape else 1
    if width % block.numbers:
        raise UnsupportedFile(
            f"{name!r} is stored as {dtype.upper()} in rows of {width}, which are not whole blocks of {block.numbers}. "
            "Use a file that keeps this tensor in 16 or 32 bits."
        )
    return math.prod(shape[:-1]) * block.row_bytes(width)


def _refuse_parts(path: Path, metadata: Mapping[str, Any], num_tensors: int) -> None:
    parts = metadata.get("split.count", 1)
    if type(parts) is int and parts > 1:
        raise UnsupportedFile(
            f"it is one part of {parts}. Join them with `llama-gguf-split --merge`, and give the result."
        )
    if num_tensors == 0:
        raise UnsupportedFile("it is a GGUF file without tensors (a vocabulary perhaps). Give the model's own file.")


def _in_words(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns; complaints about the header become errors that name the file."""
    try:
        return read()
    except UnsupportedFile as error:
        raise UnsupportedFile(f"{path.name} cannot be used: {error}") from error
    except UnicodeDecodeError as error:
        raise FileUnreadable(f"{path.name} has a damaged GGUF header: a text in it is not UTF-8. {_AGAIN}") from error
    except (ValueError, OverflowError) as error:
        raise FileUnreadable(f"{path.name} has a damaged GGUF header: {error}. {_AGAIN}") from error


_AGAIN = "Download or copy the file again."


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63

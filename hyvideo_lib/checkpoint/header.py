"""What every file reader gives: the tensors of a file by name, with their dtypes, shapes and places, and its metadata.

Which format the bytes are in is the readers' affair (`read` for safetensors, `gguf`); what they share is here, and the
bounds that keep a damaged or hostile header from costing memory before anything in it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import FileMissing, FileTruncated, FileUnreadable

MAX_TENSORS = 20_000  # the largest known file, with three companions for each weight, has under 3,000
MAX_DIMS = 16
MAX_NUMEL = 2**56  # numbers in a tensor; one without any may claim this many but for a dimension of 0
MAX_NAME = 256  # characters of a tensor's name; the longest known has about 80
FREE_PARTS, BYTES_PER_PART = 20_000, 256
"""Brackets and commas that any header may have, and one more for so many bytes of the file. A tensor has about ten, so
no model comes near; each costs up to 300 bytes once parsed, and reading a file must not cost more than the file."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it; `start` and `end` are byte offsets in the file."""

    name: str
    dtype: str  # torch's name ("bfloat16", "float8_e4m3fn", ...), or that of a GGUF block format ("q8_0", "q4_k", ...)
    shape: tuple[int, ...]  # of the numbers, in PyTorch's order, whatever the storage
    start: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """A checked header: the tensors in the file's order of names, its metadata as text, the file's length in bytes.

    notes: sentences on what was read past.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    file_size: int
    format: str = "safetensors"  # or "gguf"
    notes: tuple[str, ...] = ()

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, or None if the file has no such tensor."""
        info = self.tensors.get(name)
        return info.shape if info else None


def open_file(path: Path) -> BinaryIO:
    """The file for reading. Raises FileMissing, or FileUnreadable for a folder and whatever else cannot be opened."""
    try:
        if path.is_dir():
            raise FileUnreadable(f"{path} is a folder; give one file inside it.")
        if path.exists() and not path.is_file():  # opening a pipe would wait for whoever fills it
            raise FileUnreadable(f"{path} is a pipe or a device, not a file.")
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileMissing(f"There is no file {str(path)!r}. Check the name and the folder.") from error
    except OSError as error:
        raise FileUnreadable(f"{path} cannot be opened: {error.strerror or error}.") from error


def check_layout(
    tensors: Mapping[str, TensorInfo], path: Path, data_start: int, file_size: int, kind: str, alignment: int = 1
) -> None:
    """The data must be covered exactly, in one piece: anything else is a damaged or unfinished file.

    Each tensor begins at the first multiple of `alignment` after the one before it. kind: the format's name, for the
    message. Raises FileUnreadable or FileTruncated.
    """
    position = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        expected = align(position, alignment)
        if info.start != expected:
            problem = "overlaps the tensor before it" if info.start < expected else "leaves a hole before it"
            raise FileUnreadable(
                f"{path.name} has a damaged {kind} header: {info.name!r} {problem}. Download or copy it again."
            )
        position = info.end
    if position > file_size:
        raise FileTruncated(
            f"{path.name} is cut short: its header describes {position} bytes, the file has {file_size}, "
            f"{position - file_size} are missing. Download or copy it again."
        )
    surplus = file_size - align(position, alignment)
    if surplus > 0:
        raise FileUnreadable(
            f"{path.name} is damaged: it has {surplus} bytes more than its header describes. Download or copy it again."
        )


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not below `position`."""
    return -(-position // alignment) * alignment


def most_parts(file_size: int) -> int:
    """Parts that the header of a file of so many bytes may have."""
    return FREE_PARTS + file_size // BYTES_PER_PART


def check_parts(parts: int, what: str, file_size: int) -> None:
    """Raises ValueError for more parts than the header of a file of so many bytes has. what: their name."""
    most = most_parts(file_size)
    require(parts <= most, f"it has {parts} {what}; in a file of {file_size} bytes {most} would be very many")


def check_name(name: str) -> None:
    """Raises ValueError for a tensor's name that no terminal should be shown, or that is too long."""
    require(len(name) <= MAX_NAME, f"a tensor's name has {len(name)} characters")
    require(name.isprintable(), f"a tensor's name holds control characters: {name!a}")


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Raises ValueError for dimensions that no tensor can have, not even one that is empty by another dimension."""
    require(len(shape) <= MAX_DIMS, f"{name!r} has {len(shape)} dimensions")
    require(math.prod(size or 1 for size in shape) <= MAX_NUMEL, f"{name!r} has an absurd size")


def require(condition: bool, complaint: str) -> None:
    """Raises ValueError(complaint), which the readers turn into a sentence about their file."""
    if not condition:
        raise ValueError(complaint)

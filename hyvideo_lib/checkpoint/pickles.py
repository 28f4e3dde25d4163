"""What can be said of a pickle without unpickling it: which writer, how many tensors, and how their names begin.

A PyTorch file is a zip whose `data.pkl` describes tensors that lie beside it, one member each; an old one is a bare
stream of opcodes. Reading a zip's directory, or the texts among opcodes, runs nothing of what they say. The bounds are
there because a hostile file is what pickles are known for.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .header import MAX_TENSORS
from .read import Header, TensorInfo

MAX_PICKLE_BYTES = 32_000_000  # of data.pkl; a 13B transformer's has about 0.1 MB
MAX_OPCODES = 2_000_000  # about 20 describe a tensor
MAX_DIRECTORY_BYTES = 2_000_000  # about 100 for a tensor; each costs seven bytes once it is read
OLD_PICKLES = 4  # an old PyTorch file is this many pickles in a row; the last of them has the names
OLD_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_TEXTS = frozenset(("SHORT_BINUNICODE", "BINUNICODE", "UNICODE"))
_NAME = re.compile(r"[A-Za-z_][\w.\-]*\.[\w.\-]*[A-Za-z_0-9]", re.ASCII)


@dataclass(frozen=True)
class PickleFacts:
    """layout: "torch_zip", "torchscript", "zip" or "pickle". members: how many tensors a zip holds. names: texts in it
    that look like tensors' names."""

    layout: str
    members: int
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        return {
            "torch_zip": "a PyTorch pickle (.pt, .ckpt, .bin)",
            "torchscript": "a TorchScript program",
            "zip": "a zip archive",
            "pickle": "an old PyTorch or Python pickle",
        }[self.layout]

    def header(self, path: Path, file_size: int) -> Header:
        """The names without shapes, for the table of known files."""
        tensors = {name: TensorInfo(name, "float32", (), 0, 0) for name in self.names}
        return Header(path, tensors, {}, file_size)


def read_pickle(path: Path) -> PickleFacts | None:
    """The facts of a file that is a zip or begins like a pickle; None for any other. Raises OSError only."""
    with path.open("rb") as file:
        head = file.read(9)
        # The length of a safetensors header may begin with the same two bytes; its ninth is always a brace.
        if head.startswith(OLD_MAGIC) and head[8:] != b"{":
            file.seek(0)
            return PickleFacts("pickle", 0, _names(file.read(MAX_PICKLE_BYTES)))
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        return _read_zip(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OverflowError):
        return PickleFacts("zip", 0, ())


def _read_zip(path: Path) -> PickleFacts:
    with _Bounded(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.most = MAX_PICKLE_BYTES
        members = archive.infolist()
        program = next((member for member in members if member.filename.split("/")[-1] == "data.pkl"), None)
        if program is None:
            return PickleFacts("zip", len(members), ())
        folder = program.filename.rpartition("/")[0]
        tensors = sum(member.filename.startswith(f"{folder}/data/") for member in members)
        is_script = any(member.filename.startswith(f"{folder}/code/") for member in members)
        # PyTorch stores without compression; what is compressed could be a bomb.
        is_plain = program.compress_type == zipfile.ZIP_STORED and program.file_size <= MAX_PICKLE_BYTES
        names = _names(archive.read(program)) if is_plain else ()
    return PickleFacts("torchscript" if is_script else "torch_zip", tensors, names)


class _Bounded(io.BufferedReader):
    """A file that gives `zipfile`, which takes a directory of any size at once, no more than `most` bytes at a time."""

    most = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises BadZipFile where more is asked for."""
        wanted = self.most if size is None or size < 0 else size
        if wanted > self.most:
            raise zipfile.BadZipFile(f"its directory claims {wanted} bytes")
        return super().read(wanted)


def _names(opcodes: bytes) -> tuple[str, ...]:
    """Texts among a pickle's opcodes that look like names of tensors, in their order. Opcodes are read, never run."""
    names: dict[str, None] = {}
    stream = io.BytesIO(opcodes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts that nobody will see
            described = (part for _ in range(OLD_PICKLES) for part in pickletools.genops(stream))
            for opcode, argument, _ in islice(described, MAX_OPCODES):
                if opcode.name in _TEXTS and isinstance(argument, str) and _NAME.fullmatch(argument[:256]):
                    names[argument[:256]] = None
                    if len(names) == MAX_TENSORS:
                        break
    except (ValueError, UnicodeError, IndexError, OverflowError):
        pass  # damaged or cut short: what was read so far is what there is
    return tuple(names)

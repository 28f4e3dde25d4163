"""Files of tensors, lazily: a checked header, then tensors that are views of the mapped file.

safetensors (huggingface/safetensors, README): 8 bytes little-endian N, N bytes of JSON {name: {dtype, shape,
data_offsets}}, then the data, each tensor's bytes following the last one's without a hole. The header is read by hand
because what is wrong with a file should be said in words, and because recognising a file must not need its gigabytes.
`gguf` reads GGUF headers. Nothing is copied: a 13 GB file costs address space, and pages come in as they are read.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch

from ..errors import FileTruncated, FileUnreadable, UnsupportedFile
from ..quant.ggml import GGML_FORMATS
from .foreign import HEAD_BYTES, recognise_foreign
from .gguf import MAGIC, read_gguf_header
from .header import (
    MAX_NAME,
    MAX_TENSORS,
    Header,
    TensorInfo,
    check_layout,
    check_name,
    check_parts,
    check_shape,
    most_parts,
    open_file,
    require,
)
from .header_text import as_metadata, read_text, structure_of

__all__ = ["Header", "TensorInfo", "map_tensors", "read_header", "stored_as"]

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 100_000_000  # of safetensors itself; a 13B transformer's has 0.1 MB, a LoRA's with its history more
LENGTH_BYTES = 8
_LINUX_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # Python has the name since 3.13 only

# safetensors name -> (bytes per element, torch's name)
DTYPES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "BOOL": (1, "bool"),
        "U8": (1, "uint8"),
        "I8": (1, "int8"),
        "F8_E4M3": (1, "float8_e4m3fn"),
        "F8_E5M2": (1, "float8_e5m2"),
        "F8_E8M0": (1, "float8_e8m0fnu"),
        "I16": (2, "int16"),
        "U16": (2, "uint16"),
        "F16": (2, "float16"),
        "BF16": (2, "bfloat16"),
        "I32": (4, "int32"),
        "U32": (4, "uint32"),
        "F32": (4, "float32"),
        "I64": (8, "int64"),
        "U64": (8, "uint64"),
        "F64": (8, "float64"),
        "C64": (8, "complex64"),
    }
)


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors or GGUF file; touches no tensor.

    Raises FileMissing, FileTruncated, FileUnreadable (neither format, or a damaged header) or UnsupportedFile (another
    format, or a dtype unknown here).
    """
    path = Path(path)
    with open_file(path) as file:
        file_size = file.seek(0, 2)
        file.seek(0)
        if file.read(len(MAGIC)) == MAGIC:
            file.seek(0)
            return read_gguf_header(file, path, file_size)
        file.seek(0)
        text, data_start, told = _read_header_text(file, path, file_size)
    tensors, metadata, notes = _parse(text, path, data_start, file_size)
    check_layout(tensors, path, data_start, file_size, "safetensors")
    return Header(path, MappingProxyType(tensors), MappingProxyType(metadata), file_size, notes=(*told, *notes))


def map_tensors(header: Header) -> dict[str, torch.Tensor]:
    """All tensors of a file as views of one mapping: no bytes are read, none copied.

    A tensor in a GGUF block format is a uint8 view of its bytes, [..., bytes of a row] instead of [..., width].
    The mapping lives as long as any of the tensors. They are not for writing: that never reaches the file, makes
    private pages on Linux and macOS, and ends the process on Windows and with AMD's PyTorch. A tensor whose bytes do
    not start at a multiple of its element size cannot be viewed, so that one is copied. The file must not be cut short
    by others while mapped. Raises FileTruncated if it changed since `read_header`.
    """
    with open_file(header.path) as file:
        size = file.seek(0, 2)
        if size != header.file_size:
            raise FileTruncated(
                f"{header.path.name} changed from {header.file_size} to {size} bytes while it was being loaded. "
                "Wait until its download or copy is finished, then load it again."
            )
        data = _map(file)

    copied = 0

    def view(info: TensorInfo) -> torch.Tensor:
        nonlocal copied
        dtype, shape = stored_as(info, header.path)
        if info.num_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        raw = data[info.start : info.end]
        if info.start % dtype.itemsize:
            raw = raw.clone()
            copied += info.num_bytes
        return raw.view(dtype).view(shape)

    tensors = {name: view(info) for name, info in header.tensors.items()}
    if copied:
        logger.warning(
            "%s: %.1f MB of its tensors are misaligned and were copied into memory. Saved again with the safetensors "
            "package the file can be used as it lies.",
            header.path.name,
            copied / 1e6,
        )
    return tensors


def stored_as(info: TensorInfo, path: Path) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of the tensor's bytes as torch sees them."""
    if info.dtype in GGML_FORMATS:
        return torch.uint8, (*info.shape[:-1], GGML_FORMATS[info.dtype].row_bytes(info.shape[-1]))
    dtype = getattr(torch, info.dtype, None)
    if dtype is None:
        raise UnsupportedFile(
            f"{path.name} stores {info.name!r} as {info.dtype}, which this PyTorch ({torch.__version__}) does not "
            "know. Update PyTorch, or use a bf16 file."
        )
    return dtype, info.shape


def _maps_read_only() -> bool:
    """Windows reserves RAM or page file for every page of a mapping that may be written, whether anybody writes or not
    (MapViewOfFile, FILE_MAP_COPY); AMD's driver copies from such a mapping several times slower (reported in
    ROCm/legacy-rocm-build issue 6523)."""
    return sys.platform == "win32" or torch.version.hip is not None


def _map(file: BinaryIO) -> torch.Tensor:
    """[bytes of the file] uint8, mapped: copy-on-write where that costs nothing, else read-only.

    Linux refuses a writable private mapping larger than RAM and swap, as if all of it were to be written; NORESERVE
    says that nobody is going to write 26 GB of weights.
    """
    try:
        if _maps_read_only():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable")  # and nobody writes
                return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=torch.uint8)
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", _LINUX_NORESERVE)
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as error:
        raise FileUnreadable(f"{file.name} cannot be mapped into memory: {error}.") from error
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _read_header_text(file: BinaryIO, path: Path, file_size: int) -> tuple[str, int, tuple[str, ...]]:
    """The JSON part of the header, where it ends, and notes, after checking that this is a safetensors file at all."""
    head = file.read(HEAD_BYTES)
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    begins_json = head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"
    if len(head) <= LENGTH_BYTES or length > MAX_HEADER_BYTES or not begins_json:
        raise _not_safetensors(head, path, file_size)
    if LENGTH_BYTES + length > file_size:
        raise FileTruncated(
            f"{path.name} is cut short inside its header: {LENGTH_BYTES + length} bytes of header, the file has "
            f"{file_size}, {LENGTH_BYTES + length - file_size} are missing. Download or copy it again."
        )
    file.seek(LENGTH_BYTES)
    try:
        text, notes = read_text(file, length)
    except ValueError as error:  # among them UnicodeDecodeError
        raise _damaged(path, str(error)) from error
    return text, LENGTH_BYTES + length, notes


def _not_safetensors(head: bytes, path: Path, file_size: int) -> Exception:
    foreign = recognise_foreign(head)
    if foreign:
        return foreign.error(f"{path.name} is {foreign.name}, not a safetensors file. {foreign.advice}")
    if file_size <= LENGTH_BYTES:
        what = "is empty" if file_size == 0 else f"has only {file_size} byte{'s' * (file_size > 1)}"
        return FileTruncated(f"{path.name} {what}; a safetensors file has a header first. Download or copy it again.")
    if not any(head):
        return FileTruncated(f"{path.name} begins with zeros: its download never finished. Download it again.")
    return FileUnreadable(
        f"{path.name} is not a safetensors file (it begins with {head[:12].hex(' ')}). "
        "Give a .safetensors or .gguf file."
    )


def _parse(
    text: str, path: Path, data_start: int, file_size: int
) -> tuple[dict[str, TensorInfo], dict[str, str], tuple[str, ...]]:
    """Tensors, metadata, and notes on the metadata."""
    try:
        count = text.count('"data_offsets"')
        require(count <= MAX_TENSORS, f"it describes {count} tensors, no known model has over {MAX_TENSORS}")
        check_parts(_count_marks(text, file_size), "commas and brackets", file_size)
        entries = json.loads(text, object_pairs_hook=_unique_keys)
        metadata, notes = as_metadata(entries.pop("__metadata__", {}))
        tensors = {name: _parse_tensor(name, entry, data_start) for name, entry in entries.items()}
    except UnsupportedFile as error:
        raise UnsupportedFile(f"{path.name}: {error}") from error
    except (ValueError, RecursionError) as error:  # JSON and our own complaints are all ValueErrors
        raise _damaged(path, "it is nested too deeply" if isinstance(error, RecursionError) else str(error)) from error
    return tensors, metadata, notes


def _count_marks(text: str, file_size: int) -> int:
    """Commas and brackets of a header; those inside its strings are counted only where they do not matter."""
    every = sum(text.count(mark) for mark in ",[{")
    if every <= most_parts(file_size):
        return every
    return sum(outside.count(mark) for outside in structure_of(text) for mark in ",[{")


def _damaged(path: Path, reason: str) -> FileUnreadable:
    return FileUnreadable(f"{path.name} has a damaged safetensors header: {reason}. Download or copy the file again.")


def _parse_tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    check_name(name)  # a lone surrogate, allowed in JSON, would break every later message
    require(isinstance(entry, dict), f"{name!r} is not described by a table")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    require(isinstance(dtype, str), f"{name!r} has no dtype")
    require(isinstance(shape, list), f"{name!r} has no usable shape")
    require(isinstance(offsets, list) and len(offsets) == 2, f"{name!r} has no pair of data offsets")
    require(all(_is_size(number) for number in (*shape, *offsets)), f"{name!r} has a size that is no whole number")
    check_shape(name, shape)
    if dtype not in DTYPES:
        raise UnsupportedFile(f"{name!r} is stored as {dtype[:20]!r}; known dtypes are {', '.join(DTYPES)}.")
    bytes_per_element, torch_name = DTYPES[dtype]
    start, end = offsets
    wanted, found = math.prod(shape) * bytes_per_element, end - start
    require(found == wanted, f"{name!r} should have {wanted} bytes by its shape, its offsets say {found}")
    return TensorInfo(name, torch_name, tuple(shape), data_start + start, data_start + end)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name[:MAX_NAME]!r} stands in it twice")
    return table


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63  # bool is an int, but not a size

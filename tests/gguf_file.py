"""GGUF files for tests, written by hand so that every field can lie."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NUMBERS = {
    "float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11,
    "q4_k": 12, "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "int32": 26, "bfloat16": 30,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor as it is to stand in the file. dims: innermost first; offset: None places it after the one before."""

    dims: Sequence[int]
    type_number: int
    data: bytes
    offset: int | None = None


def entry(tensor: torch.Tensor, ggml_type: str = "", width: int = 0) -> Entry:
    """A tensor's entry: plain by its dtype, or rows of bytes (uint8) that hold `width` numbers in a block format."""
    name = ggml_type or str(tensor.dtype).removeprefix("torch.")
    shape = (*tensor.shape[:-1], width) if ggml_type else tuple(tensor.shape)
    data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return Entry(shape[::-1], NUMBERS[name], data)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(value: Any) -> bytes:
    """A metadata value with its type. bytes are taken as they are, type included."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def gguf_bytes(
    tensors: Mapping[str, Entry] | Sequence[tuple[str | bytes, Entry]],
    metadata: Mapping[str, Any] | Sequence[tuple[str | bytes, Any]] = (),
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file. counts: (tensors, metadata entries) as claimed."""
    table = list(tensors.items()) if isinstance(tensors, Mapping) else list(tensors)
    values = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(table), len(values))))
    for key, value in values:
        head += text(key) + value_bytes(value)
    data = b""
    for name, item in table:
        offset = len(data) if item.offset is None else item.offset
        head += text(name) + struct.pack(f"<I{len(item.dims)}Q", len(item.dims), *item.dims)
        head += struct.pack("<IQ", item.type_number, offset)
        data += item.data + bytes(-len(item.data) % alignment)
    return head + bytes(-len(head) % alignment) + data


def write_gguf(path: Path, *args: Any, **kwargs: Any) -> Path:
    """Write `gguf_bytes` of these arguments."""
    path.write_bytes(gguf_bytes(*args, **kwargs))
    return path

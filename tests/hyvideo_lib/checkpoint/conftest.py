"""Synthetic checkpoints: true headers over sparse files, so that a 25 GB model costs no disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

GOLDENS = Path(__file__).parents[2] / "goldens"
CODES = {
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "float32": ("F32", 4),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "uint8": ("U8", 1),
    "int64": ("I64", 8),
}
Entries = Mapping[str, tuple[list[int], str]]
WriteFile = Callable[..., Path]


def layout_entries(name: str, key: str = "entries") -> dict[str, tuple[list[int], str]]:
    """All tensors of a recorded layout; `{0..19}` in a name stands for each of these indices."""
    recorded = json.loads((GOLDENS / "layouts" / f"{name}.json").read_text())[key]
    entries = {}
    for pattern, (shape, dtype) in recorded.items():
        span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
        indices = range(int(span[1]), int(span[2]) + 1) if span else range(1)
        for index in indices:
            name = pattern.replace(span[0], str(index)) if span else pattern
            dtype_name = dtype.split()[0]
            entries[name] = ([7] if "N" in shape else shape, dtype_name)
    return entries


@pytest.fixture
def goldens() -> Path:
    return GOLDENS


@pytest.fixture
def write_sparse(tmp_path: Path) -> WriteFile:
    """Write a safetensors file of these tensors, all zeros, without using disk: write_sparse(entries, ...) -> path."""

    def write(entries: Entries, metadata: Mapping[str, str] | None = None, name: str = "model.safetensors") -> Path:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        position = 0
        for tensor, (shape, dtype) in entries.items():
            code, width = CODES[dtype]
            end = position + math.prod(shape) * width
            header[tensor] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # as the safetensors package does, so that all data are aligned
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + position)
        return path

    return write


@pytest.fixture
def entries_of() -> Callable[..., dict[str, tuple[list[int], str]]]:
    return layout_entries

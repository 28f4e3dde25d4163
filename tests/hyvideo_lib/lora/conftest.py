"""LoRA files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(tensors, metadata) -> the path of a file that holds them."""
    count = 0

    def write(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"lora{count}.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
        return path

    return write

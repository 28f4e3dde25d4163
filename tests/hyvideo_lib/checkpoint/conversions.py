"""What tests of conversions share: weights to convert, and how to tell that two files hold the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.rewrite import Request
from hyvideo_lib.quant import quantize_fp8

Weights = dict[str, Tensor]
GOLDENS = Path(__file__).parents[2] / "goldens"
AXES = {"hyvideo.config": json.dumps({"rope_axes": [4, 10, 10]})}
GROUPS = {"hyvideo.config": json.dumps({"norm_groups": 4})}
FP8 = torch.float8_e4m3fn


def weights_of(name: str = "dit_tiny_t2v") -> Weights:
    return load_file(GOLDENS / f"{name}.weights.safetensors")


def write(path: Path, weights: Weights, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata)
    return path


def same(found: Weights, expected: Weights) -> bool:
    assert found.keys() == expected.keys()
    return all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and torch.equal(found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))
        for name, tensor in expected.items()
    )


def with_scales(weights: Weights) -> tuple[Weights, Weights]:
    """(weights with those of the blocks in fp8, their scales by module)."""
    stored, scales = dict(weights), {}
    for name, tensor in weights.items():
        if name.startswith(("double_blocks", "single_blocks")) and tensor.ndim == 2:
            stored[name], scales[name.removesuffix(".weight")] = quantize_fp8(tensor)
    return stored, scales


def convert(tmp_path: Path, weights: Weights, metadata: dict[str, str] | None = AXES, **request: Any) -> Weights:
    source, target = write(tmp_path / "old.safetensors", weights, metadata), tmp_path / "new.safetensors"
    convert_file(source, target, Request(**request), overwrite=True)
    return load_file(target)

"""Configs small enough for a CPU, and the recorded reference data."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDENS = Path(__file__).parent / "goldens"


@cache
def manifest() -> dict[str, dict]:
    """The recorded cases by name."""
    return {case["name"]: case for case in json.loads((GOLDENS / "manifest.json").read_text())["cases"]}


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """The tensors of one golden file; 16-bit weights come back in float32, in which the reference ran."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    if name.endswith(".weights"):
        tensors = {key: value.float() for key, value in tensors.items()}
    return tensors


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()

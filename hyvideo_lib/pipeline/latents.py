"""Latents as files: safetensors with one tensor, unscaled, and the settings that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import whole_file
from ..checkpoint import map_tensors, read_header
from ..errors import BadInput, InvalidFrames, InvalidSize, WrongKind
from .request import GenerateRequest

TENSOR_NAME = "latents"
OTHER_NAMES = ("latent_tensor",)
"""ComfyUI's own; its latents are in the same, unscaled space."""
SETTINGS_KEY = "hyvideo.settings"


def save_latents(path: Path, latents: Tensor, settings: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write unscaled latents [1, C, T, H, W]. Raises OutputExists, OutputNotWritable, DiskFull."""
    from safetensors.torch import save

    data = save({TENSOR_NAME: latents.contiguous()}, {SETTINGS_KEY: json.dumps({**settings})})
    with whole_file(path, overwrite) as temporary:
        temporary.write_bytes(data)


def save_native_latents(path: Path, latents: Tensor) -> None:
    """Write unscaled latents [B, C, T, H, W] as ComfyUI's Load Latent reads them. Raises as `save_latents`."""
    from safetensors.torch import save

    data = save({OTHER_NAMES[0]: latents.contiguous(), "latent_format_version_0": torch.tensor([])})
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def load_latents(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Unscaled latents [1, C, T, H, W], float32, and the settings that made them ({} if the file does not say).

    Raises FileMissing, FileTruncated, FileUnreadable, WrongKind.
    """
    header = read_header(path)
    name = next((name for name in (TENSOR_NAME, *OTHER_NAMES) if name in header.tensors), None)
    shape = header.tensors[name].shape if name else ()
    if name is None or len(shape) != 5 or shape[0] != 1 or 0 in shape:
        listed = ", ".join(f"{info.name} {list(info.shape)}" for info in list(header.tensors.values())[:5]) or "nothing"
        raise WrongKind(
            f"{path.name} holds no latents of one video: looked for a tensor {TENSOR_NAME!r} of "
            f"[1, C, T, H, W], found {listed}. Give a file that --save-latents wrote."
        )
    return map_tensors(header)[name].to(torch.float32, copy=True), _settings(header.metadata.get(SETTINGS_KEY))


def _settings(text: str | None) -> dict[str, Any]:
    try:
        settings = json.loads(text or "{}")
    except (ValueError, RecursionError):  # the latents are worth more than the note on how they were made
        return {}
    return settings if isinstance(settings, dict) else {}


def check_latents(latents: Tensor, request: GenerateRequest, channels: int) -> None:
    """Raises InvalidFrames or InvalidSize unless latents [1, C, T, H, W] are of the size that is asked for."""
    wanted = (1, channels, *request.latent_shape)
    found = tuple(latents.shape)
    if found != wanted:
        error: type[BadInput] = InvalidFrames if found[:2] + found[3:] == wanted[:2] + wanted[3:] else InvalidSize
        raise error(
            f"The given latents are {list(found)}, but {request.width} x {request.height} with {request.frames} frames "
            f"needs {list(wanted)} (videos, channels, frames, height, width). Leave the size out to take theirs."
        )

"""Weights rewritten in other layouts by the recorded maps, which know nothing of the code under test."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LAYOUTS = Path(__file__).parents[2] / "goldens" / "layouts"
Weights = Mapping[str, Tensor]


@cache
def _recorded(name: str, key: str = "map") -> dict:
    return json.loads((LAYOUTS / f"{name}.json").read_text())[key]


def _template(name: str) -> tuple[str, str]:
    """A transformer tensor's name with {i} for the index of its block, and that index."""
    found = re.search(r"(?<=blocks\.)\d+", name)
    return (name, "") if found is None else (name[: found.start()] + "{i}" + name[found.end() :], found[0])


def as_comfyui(weights: Weights) -> dict[str, Tensor]:
    recorded, renamed = _recorded("map_tencent_to_comfy_transformer"), {}
    for name, tensor in weights.items():
        template, index = _template(name)
        renamed[recorded[template].replace("{i}", index)] = tensor
    return renamed


def as_diffusers(weights: Weights) -> dict[str, Tensor]:
    recorded, renamed = _recorded("map_tencent_to_diffusers_transformer"), {}
    hidden = weights["img_in.proj.bias"].shape[0]
    for name, tensor in weights.items():
        template, index = _template(name)
        operation, to = recorded[template]["op"], recorded[template]["to"]
        if operation.startswith("split"):
            sizes = [hidden] * 3 + ([tensor.shape[0] - 3 * hidden] if len(to) == 4 else [])
            renamed |= {part.replace("{i}", index): piece for part, piece in zip(to, tensor.split(sizes), strict=True)}
            continue
        if operation.startswith("swap"):
            tensor = torch.cat([tensor[tensor.shape[0] // 2 :], tensor[: tensor.shape[0] // 2]])
        renamed[to.replace("{i}", index)] = tensor
    return {name: tensor.clone() for name, tensor in renamed.items()}  # pieces share memory, which files cannot


def vae_as_comfyui(weights: Weights) -> dict[str, Tensor]:
    recorded = _recorded("vae_comfy", "map_tencent_to_comfy")
    return {
        recorded[name]: tensor[..., None, None, None] if ".to_" in name and tensor.ndim == 2 else tensor
        for name, tensor in weights.items()
    }


TRANSFORMER_LAYOUTS = {"tencent": dict, "comfyui": as_comfyui, "diffusers": as_diffusers}
VAE_LAYOUTS = {"tencent": dict, "comfyui": vae_as_comfyui}

"""Other models under the names that they really have: those of the diffusers package's own modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from hyvideo_lib.checkpoint.examine import examine
from hyvideo_lib.checkpoint.read import Header, TensorInfo

pytest.importorskip("diffusers")

HYDIT = {"attention_head_dim": 88, "in_channels": 4, "patch_size": 2, "hidden_size": 1408, "num_attention_heads": 16}
IMAGE_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 64,
    "block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "layers_per_block": 2,
    "spatial_compression_ratio": 32,
    "sample_size": 384,
}
T, A, C = "transformers", "autoencoders", "controlnets"
# (part of diffusers, module, class, its options) -> kind, variant, words of the verdict
MODELS: dict[tuple[str, str, str], tuple[dict[str, Any], str, str, str]] = {
    (T, "transformer_hunyuan_video15", "HunyuanVideo15Transformer3DModel"): (
        {"num_layers": 1, "num_refiner_layers": 1},
        "transformer",
        "hunyuanvideo-1.5",
        "HunyuanVideo 1.5",
    ),
    (T, "transformer_hunyuanimage", "HunyuanImageTransformer2DModel"): (
        {"num_layers": 1, "num_single_layers": 1},
        "transformer",
        "hunyuanimage-2.1",
        "HunyuanImage 2.1",
    ),
    (T, "transformer_hunyuan_video_framepack", "HunyuanVideoFramepackTransformer3DModel"): (
        {"num_layers": 1, "num_single_layers": 1, "has_image_proj": True, "has_clean_x_embedder": True},
        "transformer",
        "framepack",
        "FramePack",
    ),
    (T, "hunyuan_transformer_2d", "HunyuanDiT2DModel"): (
        {**HYDIT, "num_layers": 2, "cross_attention_dim": 1024},
        "transformer",
        "hunyuandit-1.0",
        "HunyuanDiT 1.0 or 1.1",
    ),
    (T, "transformer_flux", "FluxTransformer2DModel"): (
        {"num_layers": 1, "num_single_layers": 1},
        "transformer",
        "flux",
        "Flux",
    ),
    (T, "transformer_wan", "WanTransformer3DModel"): ({"num_layers": 1}, "transformer", "wan", "Wan"),
    (T, "transformer_ltx", "LTXVideoTransformer3DModel"): ({"num_layers": 1}, "transformer", "ltx", "LTX"),
    (T, "cogvideox_transformer_3d", "CogVideoXTransformer3DModel"): (
        {"num_layers": 1},
        "transformer",
        "cogvideox",
        "CogVideoX",
    ),
    (T, "transformer_mochi", "MochiTransformer3DModel"): ({"num_layers": 2}, "transformer", "mochi", "Mochi"),
    (T, "transformer_kandinsky", "Kandinsky5Transformer3DModel"): (
        {"num_text_blocks": 1, "num_visual_blocks": 1},
        "transformer",
        "kandinsky-5",
        "Kandinsky 5",
    ),
    (T, "transformer_minimax_h3", "MiniMaxH3Transformer3DModel"): (
        {"num_layers": 1},
        "transformer",
        "minimax-h3",
        "MiniMax H3",
    ),
    (C, "controlnet_hunyuan", "HunyuanDiT2DControlNetModel"): (
        {**HYDIT, "transformer_num_layers": 8},
        "controlnet",
        "hunyuandit",
        "ControlNet for HunyuanDiT",
    ),
    (A, "autoencoder_kl_hunyuanvideo15", "AutoencoderKLHunyuanVideo15"): (
        {},
        "vae",
        "hunyuanvideo-1.5",
        "HunyuanVideo 1.5",
    ),
    (A, "autoencoder_kl_hunyuanimage", "AutoencoderKLHunyuanImage"): (
        IMAGE_VAE,
        "vae",
        "hunyuanimage-2.1",
        "HunyuanImage 2.1",
    ),
    (A, "autoencoder_kl_cogvideox", "AutoencoderKLCogVideoX"): ({}, "vae", "cogvideox", "the VAE of CogVideoX"),
    (A, "autoencoder_kl_mochi", "AutoencoderKLMochi"): ({}, "vae", "mochi", "the VAE of Mochi"),
    (A, "autoencoder_kl_minimax_h3", "AutoencoderKLMiniMaxH3"): ({}, "vae", "minimax-h3", "the VAE of MiniMax H3"),
    (A, "autoencoder_kl_wan", "AutoencoderKLWan"): ({}, "vae", "wan", "a Wan VAE"),
    (A, "autoencoder_kl_ltx", "AutoencoderKLLTXVideo"): ({}, "vae", "ltx", "LTX-Video"),
    (A, "autoencoder_kl", "AutoencoderKL"): ({}, "vae", "image", "single images"),
}
RELEASED_HYDIT_12 = {"use_style_cond_and_image_meta_size": False}


def header_of(part: str, module: str, name: str, options: Mapping[str, Any]) -> Header:
    """The header of a file of such a model, of the package's default sizes but few layers."""
    with torch.device("meta"):
        model = getattr(import_module(f"diffusers.models.{part}.{module}"), name)(**options)
    tensors = {
        key: TensorInfo(key, "float32", tuple(tensor.shape), 0, 4 * math.prod(tensor.shape))
        for key, tensor in model.state_dict().items()
    }
    return Header(Path("model.safetensors"), MappingProxyType(tensors), {}, 0)


def known(part: str, module: str) -> bool:
    return find_spec(f"diffusers.models.{part}.{module}") is not None


@pytest.mark.parametrize("model", [model for model in MODELS if known(*model[:2])], ids=lambda model: model[2])
def test_another_model_is_told_by_its_real_names(model: tuple[str, str, str]) -> None:
    options, kind, variant, words = MODELS[model]
    findings = examine(header_of(*model, options))
    assert findings.match is not None
    assert (findings.kind, findings.match.layout.variant) == (kind, variant)
    assert words in findings.reason


def test_the_newer_hunyuandit_is_told_from_the_older() -> None:
    model = (T, "hunyuan_transformer_2d", "HunyuanDiT2DModel")
    findings = examine(header_of(*model, MODELS[model][0] | RELEASED_HYDIT_12))
    assert findings.match is not None
    assert findings.match.layout.variant == "hunyuandit-1.2"


def test_super_resolution_is_told_by_its_channels() -> None:
    model = (T, "transformer_hunyuan_video15", "HunyuanVideo15Transformer3DModel")
    findings = examine(header_of(*model, {**MODELS[model][0], "in_channels": 98}))
    assert findings.match is not None
    assert findings.match.layout.variant == "hunyuanvideo-1.5-sr"

"""diffusers' models with our weights, for comparison; the names of one layout against the other are a table here.

No weight is copied: both models hold the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyvideo_lib.transformer import HunyuanVideoTransformer
from hyvideo_lib.vae import CausalVideoVAE

_REFINER = ("txt_in.individual_token_refiner.blocks.{}", "context_embedder.token_refiner.refiner_blocks.{}")
_DOUBLE = ("double_blocks.{}", "transformer_blocks.{}")
_SINGLE = ("single_blocks.{}", "single_transformer_blocks.{}")
_SCOPES = {
    "": ("", ""),
    "refiner": (_REFINER[0] + ".", _REFINER[1] + "."),
    "double": (_DOUBLE[0] + ".", _DOUBLE[1] + "."),
    "single": (_SINGLE[0] + ".", _SINGLE[1] + "."),
}

RENAMED = {
    "": {
        "img_in.proj": "x_embedder.proj",
        "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "txt_in.input_embedder": "context_embedder.proj_in",
        "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
        "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
        "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
        "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    "refiner": {
        "norm1": "norm1",
        "norm2": "norm2",
        "self_attn_proj": "attn.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
        "adaLN_modulation.1": "norm_out.linear",
    },
    "double": {
        "img_mod.linear": "norm1.linear",
        "txt_mod.linear": "norm1_context.linear",
        "img_attn_proj": "attn.to_out.0",
        "txt_attn_proj": "attn.to_add_out",
        "img_attn_q_norm": "attn.norm_q",
        "img_attn_k_norm": "attn.norm_k",
        "txt_attn_q_norm": "attn.norm_added_q",
        "txt_attn_k_norm": "attn.norm_added_k",
        "img_mlp.fc1": "ff.net.0.proj",
        "img_mlp.fc2": "ff.net.2",
        "txt_mlp.fc1": "ff_context.net.0.proj",
        "txt_mlp.fc2": "ff_context.net.2",
    },
    "single": {
        "linear2": "proj_out",
        "q_norm": "attn.norm_q",
        "k_norm": "attn.norm_k",
        "modulation.linear": "norm.linear",
    },
}
"""Layers of one scope (the blocks' are repeated) whose weight and bias only change their names."""

SPLIT = {
    "refiner": {"self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v")},
    "double": {
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
"""Layers that hold several of the other layout's, one after another; each but the last is as wide as the model."""

HALVES_SWAPPED = "final_layer.adaLN_modulation.1"
"""(shift, scale) here, (scale, shift) there."""


def _build_table() -> dict[str, tuple[str, ...]]:
    rows: dict[str, tuple[str, ...]] = {}
    for scope, (ours, theirs) in _SCOPES.items():
        rows |= {ours + name: (theirs + other,) for name, other in RENAMED[scope].items()}
        rows |= {ours + name: tuple(theirs + other for other in split) for name, split in SPLIT.get(scope, {}).items()}
    return rows


TABLE = _build_table()
"""Tencent's name of a layer to diffusers' names for its parts; {} stands for the number of a block."""


def to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's state dict under diffusers' names. Views wherever the numbers stay in order."""
    width = state_dict["img_in.proj.bias"].shape[0]
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        layer, _, leaf = name.rpartition(".")
        pattern, number = re.subn(r"(?<=blocks\.)\d+", "{}", layer)
        index = re.findall(r"blocks\.(\d+)", layer) if number else [""]
        targets = TABLE[pattern]
        if layer == HALVES_SWAPPED:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        rest = tensor.shape[0] - width * (len(targets) - 1)
        parts = tensor.split([width] * (len(targets) - 1) + [rest])
        for target, part in zip(targets, parts, strict=True):
            converted[f"{target.format(*index)}.{leaf}"] = part
    return converted


def diffusers_transformer(model: HunyuanVideoTransformer, **options: Any) -> Any:
    """diffusers' transformer with the weights of ours. options: of its class (image_condition_type)."""
    from diffusers import HunyuanVideoTransformer3DModel

    config = model.config
    with torch.device("meta"):
        peer = HunyuanVideoTransformer3DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            num_layers=config.num_double_blocks,
            num_single_layers=config.num_single_blocks,
            num_refiner_layers=config.num_refiner_blocks,
            mlp_ratio=config.mlp_ratio,
            patch_size=config.patch_size[1],
            patch_size_t=config.patch_size[0],
            guidance_embeds=config.has_guidance,
            text_embed_dim=config.text_dim,
            pooled_projection_dim=config.pooled_dim,
            rope_theta=config.rope_theta,
            rope_axes_dim=config.rope_axes,
            **options,
        )
    peer.load_state_dict(to_diffusers(model.state_dict()), strict=True, assign=True)
    return peer.requires_grad_(False).eval()


def drop_masks(peer: Any) -> None:
    """Let diffusers' transformer attend without a mask, as it may where all text is valid."""
    from diffusers.models.attention_processor import Attention

    def without_mask(module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, "attention_mask": None}

    for module in peer.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(without_mask, with_kwargs=True)


def diffusers_vae(vae: CausalVideoVAE) -> Any:
    """diffusers' VAE with the weights of ours, whole in time and space until `set_tiles`."""
    from diffusers import AutoencoderKLHunyuanVideo

    config = vae.config
    with torch.device("meta"):
        peer = AutoencoderKLHunyuanVideo(
            block_out_channels=config.block_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            scaling_factor=config.scaling,
        )
    peer.load_state_dict(vae.state_dict(), strict=True, assign=True)
    set_tiles(peer, None)
    return peer.requires_grad_(False).eval()


def set_tiles(peer: Any, size_frames_overlap: tuple[int, int, float] | None) -> None:
    """Give diffusers' VAE our tiles (pixels, frames, shared fraction), or none at all: by itself it tiles in time."""
    peer.use_framewise_encoding = peer.use_framewise_decoding = peer.use_tiling = size_frames_overlap is not None
    if size_frames_overlap is None:
        return
    size, frames, overlap = size_frames_overlap
    peer.tile_sample_min_height = peer.tile_sample_min_width = size
    peer.tile_sample_stride_height = peer.tile_sample_stride_width = round(size * (1 - overlap))
    peer.tile_sample_min_num_frames, peer.tile_sample_stride_num_frames = frames, round(frames * (1 - overlap))

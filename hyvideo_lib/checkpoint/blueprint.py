"""What a file of each kind must hold: names and shapes that follow from the sizes of the model.

For our own models they come from the model itself, built on the meta device, so they cannot disagree with it. The text
encoders' layers are another package's, slow to import and with names that moved between its versions; what their files
hold is a short table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..text import ClipEncoderConfig, LlamaEncoderConfig
from ..transformer import HunyuanVideoTransformer, TransformerConfig
from ..vae import CausalVideoVAE, TinyVAE, TinyVAEConfig, VAEConfig
from .read import Header
from .sizes import (
    clip_config_from_header,
    llama_config_from_header,
    transformer_config_from_header,
    vae_config_from_header,
)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Contents:
    """Tensors of a file: those needed, and those that belong to the whole network but are not used here."""

    needed: Shapes
    unused: Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class Blueprint:
    """How the config of one kind of model is read off a header, and what its file holds then."""

    config_from_header: Callable[[Header], Any]
    contents: Callable[[Any], Contents]


def build_meta_transformer(
    config: TransformerConfig, compute_dtype: torch.dtype = torch.float32
) -> HunyuanVideoTransformer:
    """The transformer without storage."""
    with torch.device("meta"):
        return HunyuanVideoTransformer(config, compute_dtype=compute_dtype)


def build_meta_vae(config: VAEConfig) -> CausalVideoVAE:
    """The VAE without storage."""
    with torch.device("meta"):
        return CausalVideoVAE(config)


def build_meta_tiny_vae(config: TinyVAEConfig) -> TinyVAE:
    """The tiny VAE without storage."""
    with torch.device("meta"):
        return TinyVAE(config)


def vae_contents(config: VAEConfig | TinyVAEConfig) -> Contents:
    vae = build_meta_tiny_vae(config) if isinstance(config, TinyVAEConfig) else build_meta_vae(config)
    if vae.config.has_encoder or isinstance(config, TinyVAEConfig):
        return Contents(module_shapes(vae))
    moments = 2 * config.latent_channels  # of an encoder that is not there
    return Contents(
        module_shapes(vae), {"quant_conv.weight": (moments, moments, 1, 1, 1), "quant_conv.bias": (moments,)}
    )


def module_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def llama_contents(config: LlamaEncoderConfig) -> Contents:
    """A Llama's tensors; the layers above the state that is read, and mostly the norm, are not used."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = {
        "self_attn.q_proj.weight": (q_width, hidden),
        "self_attn.k_proj.weight": (kv_width, hidden),
        "self_attn.v_proj.weight": (kv_width, hidden),
        "self_attn.o_proj.weight": (hidden, q_width),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    embedding, norm = {"embed_tokens.weight": (config.vocab_size, hidden)}, {"norm.weight": (hidden,)}
    used = _repeat("layers", range(config.num_built_layers), layer)
    above = _repeat("layers", range(config.num_built_layers, config.num_layers), layer)
    head = {"lm_head.weight": (config.vocab_size, hidden)}
    if config.has_norm:
        return Contents(embedding | used | norm, above | head)
    return Contents(embedding | used, above | norm | head)


def clip_contents(config: ClipEncoderConfig) -> Contents:
    """The tensors of a CLIP text tower, all of them used."""
    hidden, inner = config.hidden_size, config.intermediate_size
    linears = {
        **{f"self_attn.{part}_proj": (hidden, hidden) for part in ("k", "v", "q", "out")},
        "mlp.fc1": (inner, hidden),
        "mlp.fc2": (hidden, inner),
    }
    layer: dict[str, tuple[int, ...]] = {}
    for name, shape in linears.items():
        layer |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("layer_norm1", "layer_norm2"):
        layer |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return Contents(
        {
            "text_model.embeddings.token_embedding.weight": (config.vocab_size, hidden),
            "text_model.embeddings.position_embedding.weight": (config.max_positions, hidden),
            **_repeat("text_model.encoder.layers", range(config.num_layers), layer),
            "text_model.final_layer_norm.weight": (hidden,),
            "text_model.final_layer_norm.bias": (hidden,),
        }
    )


def _repeat(stem: str, indices: range, layer: Shapes) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{index}.{name}": shape for index in indices for name, shape in layer.items()}


BLUEPRINTS = {
    "transformer": Blueprint(
        transformer_config_from_header,
        lambda config: Contents(module_shapes(build_meta_transformer(config))),
    ),
    "vae": Blueprint(vae_config_from_header, vae_contents),
    "llama": Blueprint(llama_config_from_header, llama_contents),
    "clip": Blueprint(clip_config_from_header, clip_contents),
}

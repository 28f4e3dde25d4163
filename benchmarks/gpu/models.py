"""Models of the released sizes with random weights, made where they are wanted; tiny ones show that a script runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyvideo_lib.checkpoint.blueprint import build_meta_transformer
from hyvideo_lib.quant import is_kept_in_plain_fp8
from hyvideo_lib.text import LlamaEncoderConfig
from hyvideo_lib.text.llm import build_llama
from hyvideo_lib.transformer import HunyuanVideoTransformer, TransformerConfig
from hyvideo_lib.vae import CausalVideoVAE, VAEConfig

TRANSFORMER = TransformerConfig(16, 16, 3072, 24, 20, 40)
TINY_TRANSFORMER = TransformerConfig(16, 16, 256, 2, 1, 2, text_dim=32, pooled_dim=16)
TINY_VAE = VAEConfig(block_channels=(8, 8, 16, 16), layers_per_block=1, norm_groups=4)
TINY_LLM = LlamaEncoderConfig(
    vocab_size=100, hidden_size=64, intermediate_size=128, num_layers=5, num_heads=4, num_kv_heads=2, head_dim=16
)
FP8 = torch.float8_e4m3fn


def random_transformer(
    config: TransformerConfig, storage: torch.dtype, device: torch.device | str, compute: torch.dtype = torch.bfloat16
) -> HunyuanVideoTransformer:
    """A transformer whose weights rest on the device in the storage dtype, as the released files keep theirs.

    The numbers keep a signal's size from layer to layer, so that no kernel meets infinities.
    """
    model = build_meta_transformer(config)
    model.compute_dtype = compute
    generator = torch.Generator(device).manual_seed(0)
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            full = f"{path}.{name}"
            dtype = compute if storage == FP8 and is_kept_in_plain_fp8(full) else storage
            value = _numbers(full, parameter.shape, generator, device).to(dtype)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    return model.eval()


def random_vae(config: VAEConfig, dtype: torch.dtype, device: torch.device) -> CausalVideoVAE:
    torch.manual_seed(0)
    with device:
        return CausalVideoVAE(config).to(dtype).requires_grad_(False).eval()


def random_llm(config: LlamaEncoderConfig, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """The language model's layers alone: ids in, states out."""
    model = build_llama(config)
    generator = torch.Generator(device).manual_seed(0)
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = _numbers(f"{path}.{name}", parameter.shape, generator, device).to(dtype)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    return model.eval()


def _numbers(name: str, shape: torch.Size, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Ones for gains, else random of a width that keeps a signal's size."""
    if "norm" in name and name.endswith("weight") and len(shape) == 1:
        return torch.ones(shape, device=device)
    width = 1 / math.sqrt(shape[1:].numel()) if len(shape) > 1 else 0.02
    return torch.empty(shape, device=device).normal_(0.0, width, generator=generator)

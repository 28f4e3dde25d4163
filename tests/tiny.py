"""Configs small enough for a CPU, models with random weights, and the recorded reference data."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hyvideo_lib.transformer import HunyuanVideoTransformer, TransformerConfig
from hyvideo_lib.vae import CausalVideoVAE, VAEConfig

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


def layout(name: str) -> dict[str, list[int]]:
    """Key to shape of a full-size checkpoint; `{0..19}` in a recorded name stands for each of these indices."""
    shapes = {}
    for key, (shape, _) in json.loads((GOLDENS / "layouts" / f"{name}.json").read_text())["entries"].items():
        span = re.search(r"\{(\d+)\.\.(\d+)\}", key)
        for index in range(int(span[1]), int(span[2]) + 1) if span else (None,):
            shapes[key.replace(span[0], str(index)) if span else key] = shape
    return shapes


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference; infinite where the shapes differ. (`torch.testing` takes seconds to import.)"""
    return (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest expected value; infinite where the shapes differ."""
    return difference(found, expected) / expected.abs().max().item()


def randomise(model: nn.Module, seed: int) -> None:
    """Weights that let every layer be seen: fan-in scaled, gains near 1, biases away from 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise * (parameter[0].numel() ** -0.5)
        else:
            parameter.data = 0.2 * noise
    for module in model.modules():
        is_gain = not isinstance(module, nn.Linear | nn.Conv3d) and isinstance(getattr(module, "weight", None), Tensor)
        if is_gain:
            module.weight.data += 1


def golden_config(case: dict[str, Any]) -> TransformerConfig:
    """The sizes of a recorded transformer."""
    sizes = case["config"]
    return TransformerConfig(
        in_channels=sizes["in_channels"],
        out_channels=sizes["out_channels"],
        hidden_size=sizes["hidden_size"],
        num_heads=sizes["heads_num"],
        num_double_blocks=sizes["mm_double_blocks_depth"],
        num_single_blocks=sizes["mm_single_blocks_depth"],
        rope_axes=tuple(sizes["rope_dim_list"]),
        rope_theta=sizes["rope_theta"],
        mlp_ratio=sizes["mlp_width_ratio"],
        text_dim=sizes["text_states_dim"],
        pooled_dim=sizes["text_states_dim_2"],
        num_refiner_blocks=sizes["refiner_depth"],
        patch_size=tuple(sizes["patch_size"]),
        has_guidance=sizes["guidance_embed"],
    )


def golden_transformer(case: dict[str, Any]) -> HunyuanVideoTransformer:
    """The recorded transformer with its weights."""
    model = HunyuanVideoTransformer(golden_config(case))
    model.load_state_dict(golden(case["weights"].removesuffix(".safetensors")), strict=True)
    return model


TRANSFORMER = TransformerConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=48,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=2,
    rope_axes=(4, 10, 10),
    text_dim=24,
    pooled_dim=20,
)


def tiny_transformer(config: TransformerConfig = TRANSFORMER, seed: int = 0, **options: Any) -> HunyuanVideoTransformer:
    """A transformer with random weights."""
    model = HunyuanVideoTransformer(config, **options)
    randomise(model, seed)
    return model


def transformer_inputs(
    batch: int = 1,
    latent_shape: tuple[int, int, int] = (3, 4, 6),
    text_tokens: int = 11,
    valid: tuple[int, ...] | None = None,
    seed: int = 0,
    config: TransformerConfig = TRANSFORMER,
) -> dict[str, Tensor]:
    """Named inputs of one forward. valid: text tokens that count, per item; all by default."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    lengths = torch.tensor(valid or (text_tokens,) * batch)
    return {
        "latents": noise(batch, config.in_channels, *latent_shape),
        "timesteps": torch.rand(batch, generator=generator) * 1000,
        "text_embeds": noise(batch, text_tokens, config.text_dim),
        "text_mask": (torch.arange(text_tokens) < lengths[:, None]).long(),
        "pooled_embeds": noise(batch, config.pooled_dim),
    }


VAE = VAEConfig(block_channels=(8, 8, 16, 16), layers_per_block=1, norm_groups=4, latent_channels=4)


def golden_vae_config() -> VAEConfig:
    """The sizes of the recorded VAE."""
    sizes = manifest()["vae_tiny"]["config"]
    return VAEConfig(
        tuple(sizes["block_out_channels"]),
        sizes["layers_per_block"],
        sizes["norm_num_groups"],
        sizes["latent_channels"],
    )


def golden_vae() -> CausalVideoVAE:
    """The recorded VAE with its weights."""
    vae = CausalVideoVAE(golden_vae_config())
    vae.load_state_dict(golden("vae_tiny.weights"), strict=True)
    return vae


def tiny_vae(config: VAEConfig = VAE, seed: int = 0) -> CausalVideoVAE:
    """A VAE with random weights."""
    vae = CausalVideoVAE(config)
    randomise(vae, seed)
    return vae

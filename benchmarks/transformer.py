"""One step of the transformer against diffusers' class: same weights, same inputs, three lengths, two dtypes.

The mid config has the true width of a head and the true text, and few blocks. With 64 of 256 text tokens valid a peer
masks the rest; ours cuts it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.measure import Side, compare
from benchmarks.peers import diffusers_transformer
from benchmarks.rows import OURS, Options, Row, compared_rows
from hyvideo_lib.transformer import HunyuanVideoTransformer, TransformerConfig

MID = TransformerConfig(16, 16, 768, 6, 2, 4)
QUICK = TransformerConfig(16, 16, 128, 1, 1, 1, text_dim=32, pooled_dim=16)
LATENTS = {"1k": (4, 32, 32), "4k": (16, 32, 32), "8k": (32, 32, 32)}
"""Latent sizes (T, H, W) by the image tokens they make: T * H/2 * W/2."""
QUICK_LATENTS = {"tiny": (2, 4, 4)}
TEXT_TOKENS = 256
VALID = (256, 64)
GUIDANCE = 6.0


def run(options: Options) -> Iterator[Row]:
    config, sizes = (QUICK, QUICK_LATENTS) if options.is_quick else (MID, LATENTS)
    for dtype in options.dtypes:
        model = build(config, dtype, options.device)
        peer = diffusers_transformer(model)
        for (name, size), valid in product(sizes.items(), VALID):
            case = f"{name} tokens, {str(dtype).removeprefix('torch.')}, {valid} of {TEXT_TOKENS} text"
            if options.wants(case):
                inputs = make_inputs(config, size, valid, dtype, options.device)
                sides = make_sides(model, peer, inputs)
                yield from compared_rows("transformer", case, *compare(sides, options.repeats, options.device))


def build(config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> HunyuanVideoTransformer:
    """Ours, with random weights."""
    torch.manual_seed(0)
    return HunyuanVideoTransformer(config, compute_dtype=dtype).to(device, dtype).requires_grad_(False).eval()


def make_sides(model: HunyuanVideoTransformer, peer: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Side]:
    return {
        OURS: lambda: model(**inputs, guidance=GUIDANCE),
        "diffusers": lambda: peer_forward(peer, inputs),
    }


def make_inputs(
    config: TransformerConfig, size: tuple[int, int, int], valid: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return {
        "latents": noise(1, config.in_channels, *size),
        "timesteps": torch.tensor([500.0], device=device),
        "text_embeds": noise(1, TEXT_TOKENS, config.text_dim),
        "text_mask": (torch.arange(TEXT_TOKENS, device=device) < valid)[None],
        "pooled_embeds": noise(1, config.pooled_dim),
    }


def peer_forward(peer: nn.Module, inputs: dict[str, Tensor], guidance: float | None = GUIDANCE) -> Tensor:
    """diffusers' forward on our named inputs. Its guidance is in thousandths."""
    latents = inputs["latents"]
    scale = None if guidance is None else torch.full((latents.shape[0],), guidance * 1000.0).to(latents)
    return peer(
        hidden_states=latents,
        timestep=inputs["timesteps"],
        encoder_hidden_states=inputs["text_embeds"],
        encoder_attention_mask=inputs["text_mask"],
        pooled_projections=inputs["pooled_embeds"],
        guidance=scale,
        return_dict=False,
    )[0]

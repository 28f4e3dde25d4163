"""Whole forwards against diffusers' class with the same weights, at sizes and in forms that the goldens do not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import TRANSFORMER, relative_error, tiny_transformer, transformer_inputs

from benchmarks.peers import TABLE, diffusers_transformer, to_diffusers
from benchmarks.transformer import peer_forward
from hyvideo_lib.transformer import TransformerConfig

TOLERANCE = 2e-5
"""Of the largest value: float32 rounding through all blocks, the same bound as for the recorded cases."""

DEEP = replace(TRANSFORMER, num_double_blocks=3, num_single_blocks=4)
REAL_HEADS = TransformerConfig(4, 4, 256, 2, 1, 2, text_dim=24, pooled_dim=20)
MANY_HEADS = replace(TRANSFORMER, hidden_size=96, num_heads=6, rope_axes=(4, 6, 6), text_dim=40)

CASES: dict[str, tuple[TransformerConfig, dict[str, Any]]] = {
    "one token of text": (TRANSFORMER, {"text_tokens": 1}),
    "a single frame": (DEEP, {"latent_shape": (1, 6, 10), "text_tokens": 7}),
    "an odd number of frames": (DEEP, {"latent_shape": (5, 4, 6), "text_tokens": 13, "valid": (13,)}),
    "padded text": (TRANSFORMER, {"text_tokens": 19, "valid": (5,)}),
    "a batch of two lengths": (DEEP, {"batch": 2, "text_tokens": 17, "valid": (9, 17)}),
    "a batch of equal lengths": (TRANSFORMER, {"batch": 2, "text_tokens": 15, "valid": (6, 6)}),
    "heads of the real width": (REAL_HEADS, {"latent_shape": (2, 8, 4), "text_tokens": 9, "valid": (4,)}),
    "many narrow heads": (MANY_HEADS, {"latent_shape": (4, 2, 6), "text_tokens": 5}),
    "no guidance": (replace(TRANSFORMER, has_guidance=False), {"text_tokens": 11, "valid": (3,)}),
    "a wider MLP": (replace(TRANSFORMER, mlp_ratio=6.0, num_refiner_blocks=1), {}),
}


@pytest.mark.parametrize("gradients", [False, True], ids=["lean", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_a_forward_equals_diffusers(name: str, gradients: bool) -> None:
    config, options = CASES[name]
    model = tiny_transformer(config, seed=3)
    inputs = transformer_inputs(config=config, seed=4, **options)
    guidance = 3.5 if config.has_guidance else None
    with torch.no_grad():
        expected = peer_forward(diffusers_transformer(model), inputs, guidance)
    with torch.set_grad_enabled(gradients):
        found = model(**inputs, guidance=guidance).detach()
    assert relative_error(found, expected) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_a_clean_first_frame_equals_token_replace_in_diffusers(batch: int) -> None:
    model = tiny_transformer(DEEP, seed=5)
    inputs = transformer_inputs(batch, (3, 6, 4), text_tokens=9, seed=6, config=DEEP)
    peer = diffusers_transformer(model, image_condition_type="token_replace")
    found = model(**inputs, guidance=6.0, clean_first_frame=True)
    assert relative_error(found, peer_forward(peer, inputs, 6.0)) <= TOLERANCE


@torch.no_grad()
def test_latent_concat_equals_diffusers() -> None:
    config = replace(TRANSFORMER, in_channels=9, has_guidance=False)
    model = tiny_transformer(config, seed=7)
    inputs = transformer_inputs(latent_shape=(3, 4, 10), text_tokens=8, seed=8, config=config)
    peer = diffusers_transformer(model, image_condition_type="latent_concat")
    assert relative_error(model(**inputs), peer_forward(peer, inputs, None)) <= TOLERANCE


def test_every_layer_has_a_row_and_every_row_another_name() -> None:
    state = tiny_transformer().state_dict()
    assert len({part for parts in TABLE.values() for part in parts}) == sum(map(len, TABLE.values()))
    converted = to_diffusers(state)
    assert sum(tensor.numel() for tensor in converted.values()) == sum(tensor.numel() for tensor in state.values())

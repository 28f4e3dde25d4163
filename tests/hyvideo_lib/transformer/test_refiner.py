from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import TRANSFORMER, randomise, relative_error
from torch import Tensor

from hyvideo_lib.transformer import ops
from hyvideo_lib.transformer.embedders import sinusoid
from hyvideo_lib.transformer.refiner import TokenRefiner, refiner_mask, valid_lengths

TIMESTEPS = torch.tensor([937.5, 3.25])
MASK = torch.arange(7) < torch.tensor([[7], [4]])


def make_refiner() -> TokenRefiner:
    refiner = TokenRefiner(TRANSFORMER, ops)
    randomise(refiner, 0)
    return refiner


def make_states(seed: int = 1) -> Tensor:
    return torch.randn(2, 7, TRANSFORMER.text_dim, generator=torch.Generator().manual_seed(seed))


def refine_one(refiner: TokenRefiner, states: Tensor, timestep: Tensor) -> Tensor:
    """The description of the refiner for one prompt without padding [L, text_dim], in float64, head by head."""
    weights = {name: tensor.double() for name, tensor in refiner.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    states = states.double()
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", sinusoid(timestep[None])[0].double())))
    mean = linear("c_embedder.linear_2", F.silu(linear("c_embedder.linear_1", states.mean(0))))
    x = linear("input_embedder", states)
    for index in range(TRANSFORMER.num_refiner_blocks):
        block = f"individual_token_refiner.blocks.{index}"
        attn_gate, mlp_gate = linear(f"{block}.adaLN_modulation.1", F.silu(time + mean)).chunk(2)
        q, k, v = linear(f"{block}.self_attn_qkv", norm(f"{block}.norm1", x)).chunk(3, dim=-1)
        heads = []
        for h in range(TRANSFORMER.num_heads):
            part = slice(h * TRANSFORMER.head_dim, (h + 1) * TRANSFORMER.head_dim)
            scores = (q[:, part] @ k[:, part].T / TRANSFORMER.head_dim**0.5).softmax(-1)
            heads.append(scores @ v[:, part])
        x = x + attn_gate * linear(f"{block}.self_attn_proj", torch.cat(heads, dim=-1))
        hidden = F.silu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + mlp_gate * linear(f"{block}.mlp.fc2", hidden)
    return x.float()


def test_the_refiner_is_what_its_description_says() -> None:
    refiner, states = make_refiner(), make_states()
    found = refiner(states, TIMESTEPS, MASK)
    for item, n in enumerate((7, 4)):
        expected = refine_one(refiner, states[item, :n], TIMESTEPS[item])
        assert relative_error(found[item, :n], expected) <= 1e-6


def test_without_a_mask_every_token_counts() -> None:
    refiner, states = make_refiner(), make_states()
    everything = torch.ones(2, 7, dtype=torch.bool)
    assert relative_error(refiner(states, TIMESTEPS, None), refiner(states, TIMESTEPS, everything)) <= 1e-6


def test_padding_never_reaches_a_valid_token() -> None:
    refiner, states = make_refiner(), make_states()
    found = refiner(states, TIMESTEPS, MASK)
    states[1, 4:] = 1e4
    again = refiner(states, TIMESTEPS, MASK)
    assert torch.equal(again[MASK], found[MASK])
    assert again.isfinite().all()


def test_the_refiner_sees_the_timestep() -> None:
    refiner, states = make_refiner(), make_states()
    assert relative_error(refiner(states, TIMESTEPS, MASK), refiner(states, TIMESTEPS - 1, MASK)) > 1e-4


def test_valid_tokens_see_valid_ones_and_all_see_the_first() -> None:
    assert refiner_mask(torch.tensor([[True, True, False]]))[0, 0].tolist() == [
        [True, True, False],
        [True, True, False],
        [True, False, False],
    ]


def test_lengths_are_counted_per_prompt() -> None:
    assert valid_lengths(MASK) == [7, 4]


@pytest.mark.parametrize(
    "row", [[1, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 1]], ids=["gap", "padded in front", "empty", "last only"]
)
def test_a_mask_that_does_not_start_with_all_its_valid_tokens_is_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match="text_mask must be 1 for the first tokens of every prompt"):
        valid_lengths(torch.tensor([[1, 1, 1], row]).bool())

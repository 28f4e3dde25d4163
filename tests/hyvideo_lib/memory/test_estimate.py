"""What the transformer's blocks are said to need, against what PyTorch's allocator hands out, and what is chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import transformer_inputs

from benchmarks.measure import working_memory
from hyvideo_lib.memory.estimate import choose_lean, lean_steps, transformer_bytes
from hyvideo_lib.transformer import HunyuanVideoTransformer, LeanConfig, TransformerConfig

RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)
SMALL = TransformerConfig(4, 4, 192, 6, 1, 1, rope_axes=(8, 12, 12), text_dim=8, pooled_dim=8, num_refiner_blocks=1)
LATENTS, TEXT, TOKENS = (8, 32, 32), 16, 2064


def bytes_of(lean: LeanConfig, tokens: int = 119_056, batch: int = 1) -> int:
    return transformer_bytes(RELEASED.hidden_size, RELEASED.mlp_ratio, tokens, 2, batch, lean)


def measured(lean: LeanConfig | None) -> int:
    """The peak of one forward above the level before it; None is the plain form."""
    torch.manual_seed(0)
    model = HunyuanVideoTransformer(SMALL).requires_grad_(False)
    inputs = transformer_inputs(latent_shape=LATENTS, text_tokens=TEXT, config=SMALL)
    with torch.set_grad_enabled(lean is None):
        return working_memory(lambda: model(**inputs, lean=lean or LeanConfig()), torch.device("cpu"))[0]


def test_every_step_takes_less_than_the_one_before() -> None:
    sizes = [bytes_of(step) for step in lean_steps(24)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.5 * sizes[0]


def test_the_steps_split_the_heads_evenly() -> None:
    assert {24 % step.head_groups for step in lean_steps(24)} == {0}
    assert lean_steps(24)[0] == LeanConfig()


@given(free=st.integers(0, 2**36), tokens=st.integers(1, 200_000), batch=st.integers(1, 2))
def test_the_first_step_that_fits_is_chosen(free: int, tokens: int, batch: int) -> None:
    found = choose_lean(RELEASED, tokens, 2, batch, free)
    steps = lean_steps(24)
    before = steps[: steps.index(found)]
    assert all(bytes_of(step, tokens, batch) > free for step in before)
    assert bytes_of(found, tokens, batch) <= free or found == steps[-1]


def test_without_a_bound_nothing_is_cut_down() -> None:
    assert choose_lean(RELEASED, 119_056, 2, 1, None) == LeanConfig()


@pytest.mark.parametrize("lean", [LeanConfig(), LeanConfig(2), LeanConfig(6), LeanConfig(6, 256)], ids=str)
def test_the_estimate_is_a_little_above_what_is_measured(lean: LeanConfig) -> None:
    said = transformer_bytes(SMALL.hidden_size, SMALL.mlp_ratio, TOKENS, 4, lean=lean)
    assert 1.0 <= said / measured(lean) <= 1.15


def test_head_groups_bring_a_forward_below_a_quarter_of_the_plain_one() -> None:
    assert measured(LeanConfig(6, 256)) <= 0.25 * measured(None)

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import randomise, relative_error

from hyvideo_lib.transformer import ops
from hyvideo_lib.transformer.modulation import (
    Condition,
    Modulation,
    clip_spans,
    gate_spans,
    modulate,
    modulate_spans,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_modulating_norms_a_token_then_scales_and_shifts_it() -> None:
    x, shift, scale = noise(2, 5, 8), noise(2, 1, 8, seed=1), noise(2, 1, 8, seed=2)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    assert relative_error(modulate(x, shift, scale), normed * (1 + scale) + shift) <= 1e-6


def test_modulating_in_16_bit_rounds_once() -> None:
    x, shift, scale = (noise(2, 5, 8, seed=seed).bfloat16() for seed in range(3))
    shift, scale = shift[:, :1], scale[:, :1]
    assert torch.equal(modulate(x, shift, scale), modulate(x.float(), shift.float(), scale.float()).bfloat16())


def test_vectors_come_from_a_linear_of_silu_in_order() -> None:
    modulation = Modulation(4, 3, ops)
    randomise(modulation, 0)
    vec = noise(2, 4)
    [(start, end, mods)] = modulation(Condition(vec))
    assert (start, end) == (0, None)
    expected = F.silu(vec) @ modulation.linear.weight.T + modulation.linear.bias
    for index, part in enumerate(mods):
        assert relative_error(part[:, 0], expected[:, 4 * index : 4 * index + 4]) <= 1e-6


def test_the_first_tokens_take_their_own_vector_from_the_same_weights() -> None:
    modulation = Modulation(4, 2, ops)
    randomise(modulation, 0)
    vec, first = noise(2, 4), noise(2, 4, seed=1)
    condition = Condition(vec, first, 3)
    x = noise(2, 7, 4, seed=2)
    spans, rest, own = modulation(condition), modulation(Condition(vec)), modulation(Condition(first))
    expected = torch.cat([modulate_spans(x[:, :3], own, 0, 1), modulate_spans(x[:, 3:], rest, 0, 1)], dim=1)
    assert torch.equal(modulate_spans(x, spans, 0, 1), expected)
    expected = torch.cat([gate_spans(x[:, :3], own, 1), gate_spans(x[:, 3:], rest, 1)], dim=1)
    assert torch.equal(gate_spans(x, spans, 1), expected)
    assert torch.equal(modulate_spans(x, modulation(condition.rest()), 0, 1), modulate_spans(x, rest, 0, 1))


@pytest.mark.parametrize("num_first", [0, 1, 4, 9, 12])
def test_clipped_spans_give_every_token_the_vectors_it_had(num_first: int) -> None:
    a, b = (torch.tensor(0),), (torch.tensor(1),)
    spans = [(0, num_first, a), (num_first, None, b)]
    for start in range(12):
        for end in range(start + 1, 13):
            given = [None] * (end - start)
            for low, high, mods in clip_spans(spans, start, end):
                assert high is not None
                given[low:high] = [mods] * (high - low)
            assert given == [a if token < num_first else b for token in range(start, end)]

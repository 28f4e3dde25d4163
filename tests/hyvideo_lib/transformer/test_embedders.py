from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import golden, randomise, relative_error

from hyvideo_lib.transformer import ops
from hyvideo_lib.transformer.embedders import ContextEmbed, PatchEmbed, ScalarEmbed, VectorEmbed, sinusoid

PRIMITIVES = golden("primitives")


@pytest.mark.parametrize("dim", [256, 7])
def test_sinusoids_equal_the_reference_within_the_rounding_of_their_angle(dim: int) -> None:
    values = PRIMITIVES["temb.t"]
    found, expected = sinusoid(values, dim), PRIMITIVES[f"temb.dim{dim}"]
    assert found.shape == expected.shape
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angles = F.pad((values[:, None] * frequencies).repeat(1, 2), (0, dim % 2))
    # The frequency and its product with the value are each rounded to 24 bits.
    assert ((found - expected).abs() <= 1e-6 + angles * 2**-22).all()


def test_frequencies_are_the_rounded_true_values_on_any_processor() -> None:
    exponents = -math.log(10000) * torch.arange(128, dtype=torch.float32) / 128
    expected = torch.tensor([math.exp(x) for x in exponents.tolist()])
    assert torch.equal(sinusoid(torch.ones(1))[0, :128], expected.cos())
    assert torch.equal(sinusoid(torch.full((1,), 6016.0))[0, :128], (6016 * expected).cos())


def test_cosines_come_first_and_zero_is_all_ones_and_zeros() -> None:
    assert sinusoid(torch.zeros(1), 6).tolist() == [[1, 1, 1, 0, 0, 0]]
    assert sinusoid(torch.zeros(1), 7).tolist() == [[1, 1, 1, 0, 0, 0, 0]]


def test_fractions_of_a_timestep_count() -> None:
    assert not torch.equal(sinusoid(torch.tensor([612.25])), sinusoid(torch.tensor([612.0])))


def test_patches_are_taken_in_order_of_time_then_height_then_width() -> None:
    embed = PatchEmbed(3, 8, (1, 2, 2), ops)
    randomise(embed, 0)
    x = torch.randn(2, 3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    weight = embed.proj.weight.flatten(1)
    rows = [
        x[:, :, t, h : h + 2, w : w + 2].flatten(1) @ weight.T + embed.proj.bias
        for t in range(2)
        for h in (0, 2)
        for w in (0, 2, 4)
    ]
    assert relative_error(embed(x), torch.stack(rows, dim=1)) <= 1e-6


def test_scalars_and_vectors_pass_through_linear_silu_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    scalar, vector, context = ScalarEmbed(8, ops), VectorEmbed(5, 8, ops), ContextEmbed(6, 8, ops)
    for seed, embed in enumerate((scalar, vector, context)):
        randomise(embed, seed)

    def two_layers(x: torch.Tensor, first: ops.Linear, second: ops.Linear) -> torch.Tensor:
        hidden = x @ first.weight.T + first.bias
        return (hidden / (1 + torch.exp(-hidden))) @ second.weight.T + second.bias

    t, v, c = torch.tensor([0.0, 999.5]), torch.randn(2, 5, generator=generator), torch.randn(2, 6, generator=generator)
    assert relative_error(scalar(t, torch.float32), two_layers(sinusoid(t), scalar.mlp[0], scalar.mlp[2])) <= 1e-6
    assert relative_error(vector(v), two_layers(v, vector.in_layer, vector.out_layer)) <= 1e-6
    assert relative_error(context(c), two_layers(c, context.linear_1, context.linear_2)) <= 1e-6


def test_sinusoids_are_made_in_float32_before_a_16_bit_layer() -> None:
    embed = ScalarEmbed(8, ops)
    seen: list[torch.Tensor] = []
    embed.mlp[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    values = torch.tensor([937.5, 6016.0])
    embed(values, torch.bfloat16)
    assert torch.equal(seen[0], sinusoid(values).bfloat16())

"""Two frames at a time against three taps at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyvideo_lib.vae import winograd


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_pairs_equal_a_3d_convolution(pairs: int, size: int, stride: tuple[int, int]) -> None:
    window, weight, bias = noise(2 + 2 * pairs, 5, 7, 8, seed=0), noise(4, 5, 3, size, size, seed=1), noise(4, seed=2)
    expected = F.conv3d(window.transpose(0, 1)[None], weight, bias, (1, *stride))[0].transpose(0, 1)
    out = torch.full_like(expected, torch.nan)
    winograd.convolve_pairs(window, winograd.pair_weights(weight), bias, stride, out)
    assert (out - expected).abs().max() < 1e-12


def test_a_convolution_without_bias_has_none() -> None:
    window, weight = torch.zeros(4, 2, 3, 3), torch.ones(2, 2, 3, 3, 3)
    out = torch.ones(2, 2, 1, 1)
    winograd.convolve_pairs(window, winograd.pair_weights(weight), None, (1, 1), out)
    assert not out.any()


@pytest.mark.parametrize(
    ("frames", "weight", "expected"),
    [
        (torch.empty(9, 64, 16, 16), torch.empty(64, 64, 3, 3, 3), True),
        (torch.empty(9, 64, 16, 16, dtype=torch.bfloat16), torch.empty(64, 64, 3, 3, 3), False),
        (torch.empty(9, 64, 16, 16, device="meta"), torch.empty(64, 64, 3, 3, 3), False),
        (torch.empty(2, 64, 64, 64), torch.empty(64, 64, 3, 3, 3), False),
        (torch.empty(9, 64, 4, 4), torch.empty(64, 64, 3, 3, 3), False),
        (torch.empty(9, 64, 16, 16), torch.empty(3, 64, 3, 3, 3), False),
        (torch.empty(9, 16, 16, 16), torch.empty(64, 16, 3, 3, 3), False),
    ],
    ids=["pays", "16 bits", "not the CPU", "no pair", "few pixels", "few outputs", "few inputs"],
)
def test_it_pays_for_many_float32_numbers_on_the_cpu(frames: Tensor, weight: Tensor, expected: bool) -> None:
    assert winograd.pays(frames, weight) is expected

from __future__ import annotations

import torch
from tiny import difference

from hyvideo_lib.vae import DiagonalGaussian

SHAPE = (1, 4, 3, 8, 8)


def make(mean: float = 0.5, logvar: float = 0.0) -> DiagonalGaussian:
    return DiagonalGaussian(torch.full(SHAPE, mean), torch.full(SHAPE, logvar))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_moments_are_mean_then_log_variance() -> None:
    moments = torch.arange(8.0).view(1, 8, 1, 1, 1)
    posterior = DiagonalGaussian.from_moments(moments)
    assert posterior.mean.flatten().tolist() == [0, 1, 2, 3]
    assert posterior.logvar.flatten().tolist() == [4, 5, 6, 7]


def test_the_log_variance_is_held_within_30_below_and_20_above() -> None:
    moments = torch.tensor([-99.0, 99.0, -99.0, -30.0, 20.0, 99.0]).view(1, 6, 1, 1, 1)
    posterior = DiagonalGaussian.from_moments(moments)
    assert posterior.mean.flatten().tolist() == [-99, 99, -99]
    assert posterior.logvar.flatten().tolist() == [-30, 20, 20]
    assert moments.flatten()[-1] == 99


def test_a_seed_decides_the_sample() -> None:
    posterior = make()
    assert torch.equal(posterior.sample(seeded(1)), posterior.sample(seeded(1)))
    assert not torch.equal(posterior.sample(seeded(1)), posterior.sample(seeded(2)))


def test_the_noise_is_drawn_in_float32_on_the_cpu_whatever_the_dtype() -> None:
    noise = torch.randn(SHAPE, generator=seeded(1), dtype=torch.float32)
    assert difference(make(0.5, 2.0).sample(seeded(1)), 0.5 + torch.e * noise) <= 1e-5
    for dtype in (torch.bfloat16, torch.float64):
        sample = DiagonalGaussian(torch.zeros(SHAPE, dtype=dtype), torch.zeros(SHAPE, dtype=dtype)).sample(seeded(1))
        assert sample.dtype == dtype
        assert torch.equal(sample, noise.to(dtype))


def test_samples_have_the_mean_and_the_variance() -> None:
    sample = DiagonalGaussian(torch.full((1, 1, 1, 100, 100), 3.0), torch.full((1, 1, 1, 100, 100), 1.0))
    drawn = sample.sample(seeded(0))
    assert abs(drawn.mean().item() - 3) < 0.05  # three standard errors of 10,000 draws
    assert abs(drawn.var().item() - torch.e) < 0.12


def test_without_variance_a_sample_is_the_mean() -> None:
    assert difference(make(0.5, -30.0).sample(seeded(0)), make().mean) <= 1e-5


def test_without_a_generator_the_global_seed_is_used() -> None:
    torch.manual_seed(3)
    first = make().sample()
    torch.manual_seed(3)
    assert torch.equal(make().sample(), first)

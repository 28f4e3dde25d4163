from __future__ import annotations

import dataclasses

import pytest

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.vae import VAEConfig
from hyvideo_lib.vae.config import STRIDES, UPSAMPLES


def test_the_defaults_are_the_released_sizes() -> None:
    config = VAEConfig()
    assert config.block_channels == (128, 256, 512, 512)
    assert (config.layers_per_block, config.norm_groups, config.latent_channels) == (2, 32, 16)
    assert config.scaling == 0.476986
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.scaling = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("factors", [STRIDES, UPSAMPLES])
def test_both_ways_are_four_in_time_and_eight_in_space(factors: tuple[tuple[int, int, int], ...]) -> None:
    total = [1, 1, 1]
    for level in factors:
        total = [a * b for a, b in zip(total, level, strict=True)]
    assert total == [4, 8, 8]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"block_channels": (128, 256, 512)}, "3 levels"),
        ({"block_channels": (128, 256, 512, 520)}, "520 channels cannot be split into 32"),
        ({"block_channels": (0, 256, 512, 512)}, "0 channels"),
        ({"layers_per_block": 0}, "must be positive"),
        ({"latent_channels": 0}, "must be positive"),
        ({"scaling": 0.0}, "must be positive"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        VAEConfig(**wrong)

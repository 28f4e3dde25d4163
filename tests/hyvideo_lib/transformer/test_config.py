from __future__ import annotations

import dataclasses

import pytest

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.transformer import TransformerConfig


def test_the_released_sizes_need_only_six_numbers() -> None:
    config = TransformerConfig(16, 16, 3072, 24, 20, 40)
    assert (config.head_dim, config.mlp_size, config.rope_axes) == (128, 12288, (16, 56, 56))
    assert (config.text_dim, config.pooled_dim, config.num_refiner_blocks) == (4096, 768, 2)
    assert config.patch_size == (1, 2, 2)
    assert config.rope_theta == 256
    assert config.has_guidance


def test_a_config_cannot_be_changed() -> None:
    config = TransformerConfig(16, 16, 3072, 24, 20, 40)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_heads = 12  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_heads": 7}, "hidden_size 3072 cannot be split into 7 heads"),
        ({"num_heads": 0}, "0 heads"),
        ({"rope_axes": (16, 56, 54)}, r"\(16, 56, 54\) must be even and sum to the width of a head, 128"),
        ({"rope_axes": (15, 57, 56)}, "must be even"),
        ({"num_heads": 12}, "width of a head, 256"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(wrong: dict, said: str) -> None:
    sizes = {
        "in_channels": 16,
        "out_channels": 16,
        "hidden_size": 3072,
        "num_heads": 24,
        "num_double_blocks": 1,
        "num_single_blocks": 1,
    }
    with pytest.raises(InvalidSetting, match=said):
        TransformerConfig(**{**sizes, **wrong})

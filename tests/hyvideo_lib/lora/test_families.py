from __future__ import annotations

import pytest

from hyvideo_lib.lora.families import other_model


@pytest.mark.parametrize("key", ["modelspec.architecture", "ss_base_model_version"])
@pytest.mark.parametrize(
    ("value", "model"),
    [
        ("flux-1-dev/lora", "FLUX"),
        ("Flux.1", "FLUX"),
        ("wan2.1", "Wan"),
        ("ltxv", "LTX-Video"),
        ("stable-diffusion-v1/lora", "Stable Diffusion"),
        ("stable_diffusion_2", "Stable Diffusion"),
        ("sdxl_base_v1-0", "Stable Diffusion XL"),
        ("sd3-medium", "Stable Diffusion 3"),
        ("qwen-image", "Qwen-Image"),
        ("CogVideoX", "CogVideoX"),
        ("mochi-1", "Mochi"),
        ("hunyuan-video", None),
        ("hunyuanvideo of flux", None),
        ("", None),
    ],
)
def test_a_trainers_word_for_the_model_is_understood(key: str, value: str, model: str | None) -> None:
    assert other_model({key: value}) == model


def test_another_model_is_told_by_the_metadata() -> None:
    assert other_model({}) is None
    assert other_model({"modelspec.architecture": "Wan2.1"}) == "Wan"
    assert other_model({"ss_base_model_version": "hunyuan_video"}) is None

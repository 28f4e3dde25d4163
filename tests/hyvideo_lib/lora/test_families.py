from __future__ import annotations

import pytest

from hyvideo_lib.lora.families import (
    DOTTED_PREFIXES,
    MODULE_NAMES,
    REFUSED_SUFFIXES,
    SUFFIXES,
    UNDERSCORED_PREFIXES,
    refused_method,
    split_suffix,
)

# As trainers write them, after a module's name.
ROLES = {
    ".lora_down.weight": "down",  # kohya, musubi
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",  # PEFT
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    "_lora.down.weight": "down",  # diffusers, older and newer
    "_lora.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    ".diff": "diff",  # whole differences
    ".diff_b": "diff_b",
}
METHODS = {
    "DoRA": "dora_scale lora_magnitude_vector lora_magnitude_vector.weight lora_magnitude_vector.default.weight",
    "LoHa": "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2",
    "LoKr": "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2",
    "LoRA with a Tucker core": "lora_mid.weight",
    "OFT": "oft_blocks oft_diag",
    "(IA)3": "on_input",
    "replacement weights": "set_weight",
    "LoRA that widens layers": "reshape_weight",
}


@pytest.mark.parametrize(("suffix", "role"), ROLES.items())
def test_a_suffix_says_which_matrix_a_tensor_is(suffix: str, role: str) -> None:
    assert split_suffix(f"lora_unet_double_blocks_0{suffix}") == ("lora_unet_double_blocks_0", role)


def test_there_are_no_other_suffixes() -> None:
    assert dict(SUFFIXES) == ROLES
    assert {f".{end}": method for method, ends in METHODS.items() for end in ends.split()} == REFUSED_SUFFIXES


def test_the_prefixes_are_those_that_files_have() -> None:
    assert set(DOTTED_PREFIXES) == {
        "",
        "transformer.",
        "diffusion_model.",
        "model.diffusion_model.",
        "base_model.model.",
        "base_model.model.transformer.",
    }
    assert set(UNDERSCORED_PREFIXES) == {
        "lora_unet_",
        "lora_transformer_",
        "lycoris_",
        "Hunyuan_video_I2V_lora_",
    }
    assert MODULE_NAMES == {"tencent": "Tencent's", "comfyui": "ComfyUI's", "diffusers": "diffusers'"}


def test_no_suffix_is_the_end_of_another() -> None:
    for suffix in SUFFIXES:
        assert [other for other in SUFFIXES if other != suffix and other.endswith(suffix)] == []
        assert split_suffix(f"a.b{suffix}") == ("a.b", SUFFIXES[suffix])
        assert split_suffix(suffix) is None
        assert refused_method(f"a.b{suffix}") is None


@pytest.mark.parametrize("suffix", REFUSED_SUFFIXES)
def test_other_methods_are_told_by_name_and_taken_for_no_role(suffix: str) -> None:
    assert refused_method(f"a.b{suffix}") == REFUSED_SUFFIXES[suffix]
    assert split_suffix(f"a.b{suffix}") is None


def test_names_that_end_otherwise_have_no_role() -> None:
    assert split_suffix("double_blocks.0.img_attn_qkv.weight") is None
    assert refused_method("double_blocks.0.img_attn_qkv.weight") is None

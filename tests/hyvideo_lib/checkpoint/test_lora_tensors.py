from __future__ import annotations

import pytest

from hyvideo_lib.checkpoint.lora_tensors import Split, method_names, refused_method, split_name

# As trainers write them, after a module's name.
ROLES = {
    ".lora_down.weight": "down",  # kohya, musubi
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",  # LyCORIS
    ".lora_A.weight": "down",  # PEFT
    ".lora_B.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_A": "down",
    ".lora_B": "up",
    "_lora.down.weight": "down",  # diffusers, older and newer
    "_lora.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    ".diff": "diff",  # whole differences, ComfyUI's and LyCORIS'
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
    ".oft_R.weight": "oft_r",
    ".oft_R.scaled_oft": "oft_scaled",
}
NAMED = {
    ".lora_A.{}.weight": "down",
    ".lora_B.{}.weight": "up",
    ".lora_A.{}": "down",
    ".lora_B.{}.bias": "up_bias",
    ".lora_magnitude_vector.{}.weight": "magnitude",
    ".lora_magnitude_vector.{}": "magnitude",
    ".oft_R.{}.weight": "oft_r",
}
REFUSED = {
    "(IA)3": "on_input ia3_l ia3_l.default",
    "replacement weights": "set_weight",
    "LoRA that widens layers": "reshape_weight",
    "COFT in an old form": "oft_diag",
    "OFT in an old form": "oft_r oft_r.default",
    "GLoRA": "a1.weight a2.weight b1.weight b2.weight",
    "BOFT": "boft_R.default boft_s",
    "VeRA": "vera_lambda_b.default vera_lambda_d",
    "LoRA on embeddings": "lora_embedding_A.default",
    "LyCORIS with a scalar that was not multiplied in": "scalar",
}


@pytest.mark.parametrize(("suffix", "role"), ROLES.items())
@pytest.mark.parametrize("stem", ["lora_unet_double_blocks_0", "a.double_blocks.0.img_attn_qkv", "_orig_mod.x.alpha"])
def test_the_end_of_a_name_says_which_part_of_a_method_a_tensor_is(suffix: str, role: str, stem: str) -> None:
    assert split_name(stem + suffix) == Split(stem, role)
    assert refused_method(stem + suffix) is None


@pytest.mark.parametrize(("suffix", "role"), NAMED.items())
@pytest.mark.parametrize("adapter", ["default", "default_0", "my-style", "Adapter 2", "alpha"])
def test_an_adapters_name_may_stand_in_it(suffix: str, role: str, adapter: str) -> None:
    assert split_name("a.b" + suffix.format(adapter)) == Split("a.b", role, adapter)


@pytest.mark.parametrize("suffix", ROLES)
def test_an_end_alone_is_no_name(suffix: str) -> None:
    assert split_name(suffix) is None


@pytest.mark.parametrize(("method", "end"), [(method, end) for method, ends in REFUSED.items() for end in ends.split()])
def test_other_methods_are_told_by_name_and_taken_for_no_role(method: str, end: str) -> None:
    assert refused_method(f"a.b.{end}") == method
    assert split_name(f"a.b.{end}") is None


@pytest.mark.parametrize("name", ["double_blocks.0.img_attn_qkv.weight", "a.lora_A.bias.x.y", "lora", "", "a.diffs"])
def test_names_that_end_otherwise_have_no_role(name: str) -> None:
    assert split_name(name) is None
    assert refused_method(name) is None


def test_the_methods_of_a_file_are_told_from_its_roles() -> None:
    assert method_names(["up", "down", "alpha"]) == ("LoRA",)
    assert method_names(["magnitude", "down", "up"]) == ("LoRA", "DoRA")
    assert method_names(["lokr_w1", "lokr_w2", "diff_b"]) == ("LoKr", "whole differences")
    assert method_names(["oft_r"]) == ("OFT",)
    assert method_names(["alpha"]) == ()

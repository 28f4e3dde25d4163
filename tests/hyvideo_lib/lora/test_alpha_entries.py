from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hyvideo_lib.lora.alpha_entries import AlphaSource, components, parse_table, source_of


def source(**entries: Any) -> AlphaSource:
    found = source_of(entries, "here")
    assert found is not None
    return found


@pytest.mark.parametrize("value", [16, 16.0, "16", " 16 ", "1.6e1", "16.0"])
def test_alpha_is_a_number_or_the_text_of_one(value: Any) -> None:
    assert source(lora_alpha=value, r="8").scale("x", 8) == 2


@pytest.mark.parametrize(
    "value",
    ["much", "nan", "inf", "-1", -1, float("nan"), float("inf"), True, [16], "1_6", "0x10", 10**400, "9" * 100, "16;"],
)
def test_what_is_no_number_is_a_problem_and_never_a_guess(value: Any) -> None:
    assert "lora_alpha" in source(lora_alpha=value).problem
    assert "alpha_pattern" in source(lora_alpha=1, alpha_pattern={"x": value}).problem


@pytest.mark.parametrize(
    "entries",
    [
        {"r": 0},
        {"r": 2.5},
        {"r": "eight"},
        {"r": 8, "rank": 4},
        {"alpha": 8},
        {"alpha_pattern": ["x"]},
        {"alpha_pattern": "{"},
        {"rank_pattern": {"(": 4}},
        {"alpha_pattern": {"(?=x)": 4}},
        {"use_rslora": "perhaps"},
    ],
)
def test_entries_that_cannot_be_read_or_contradict_each_other_are_a_problem(entries: Mapping[str, Any]) -> None:
    assert source(**{"lora_alpha": 16, **entries}).problem


@pytest.mark.parametrize("entries", [{}, {"r": 8}, {"lora_alpha": None}, {"alpha": "None"}, {"ss_network_alpha": "1"}])
def test_a_table_without_alpha_says_nothing(entries: Mapping[str, Any]) -> None:
    assert source_of(entries, "here") is None


def test_a_rank_that_is_not_the_layer_s_says_nothing_of_that_layer() -> None:
    told = source(lora_alpha=16, r=8, rank_pattern={"wide": 32})
    assert [told.scale("x", rank) for rank in (8, 4)] == [2, None]
    assert [told.scale("x.wide", rank) for rank in (32, 8)] == [0.5, None]


def test_rank_stabilised_lora_divides_by_the_root() -> None:
    assert source(lora_alpha=4, use_rslora=True).scale("x", 16) == 1
    assert source(lora_alpha=4, use_rslora="True", alpha_pattern={"x": 8}).scale("x", 16) == 2
    assert source(lora_alpha=4, use_rslora=False).scale("x", 16) == 0.25


def test_an_alpha_of_0_is_nothing_in_peft_and_the_rank_elsewhere() -> None:
    assert source(lora_alpha=0, r=8).scale("x", 8) == 0
    assert source(network_alpha="0", network_dim="8").scale("x", 8) == 1


def test_components_are_told_by_tables_and_by_prefixes() -> None:
    entries = {"r": 1, "transformer.r": 2, "transformer": {"lora_alpha": 3}, "a": {"b": {"r": 4}}}
    assert components(entries) == {"": {"r": 1}, "transformer": {"r": 2, "lora_alpha": 3}, "a.b": {"r": 4}}


def test_text_encoders_are_left_out() -> None:
    names = ("text_encoder.r", "text_encoder_2.r", "te1.r", "clip.r", "vae.r")
    assert components(dict.fromkeys(names, 1)) == {}


def test_an_alpha_in_a_table_without_a_rank_may_be_anything_s() -> None:
    assert source_of({"alpha": 0.99}, "here", keeps_lone_alpha=False) is None
    assert source_of({"alpha": 16, "rank": 8}, "here", keeps_lone_alpha=False) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "7", '"x"'])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it is"):
        parse_table(text)


@pytest.mark.parametrize(
    ("entries", "tensors", "words"),
    [
        ({"peft_type": "ADALORA"}, (), "method"),
        ({"peft_type": "OFT", "use_cayley_neumann": False}, (), "without the series"),
        ({"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 7}, (), "without the series"),
        ({"init_lora_weights": "pissa_niter_16"}, (), "own weights"),
        ({"init_lora_weights": "olora"}, (), "own weights"),
        ({"bias": "all"}, ("x.bias",), "biases"),
        ({"use_dora": True}, ("x.lora_A.weight",), "magnitudes"),
        ({"modules_to_save": ["proj_out"]}, ("proj_out.weight",), "proj_out"),
        ({"kasa_config": {"a": 1}}, (), "kasa_config"),
        ({"layer_replication": [[0, 2]]}, (), "layer_replication"),
    ],
)
def test_what_another_formula_needs_is_a_refusal(
    entries: Mapping[str, Any], tensors: tuple[str, ...], words: str
) -> None:
    found = source_of({"lora_alpha": 8, **entries}, "here", tensors)
    assert found is not None
    assert words in found.refusal


@pytest.mark.parametrize(
    ("entries", "tensors"),
    [
        ({"peft_type": "LORA"}, ()),
        ({"peft_type": "PeftType.LORA"}, ()),
        ({"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 5}, ()),
        ({"init_lora_weights": True}, ()),
        ({"init_lora_weights": "gaussian"}, ()),
        ({"bias": "all"}, ("x.lora_B.bias",)),
        ({"use_dora": True}, ("x.lora_magnitude_vector",)),
        ({"use_dora": False, "modules_to_save": None, "kasa_config": None, "layers_pattern": "blocks"}, ()),
        ({"fan_in_fan_out": True, "modules_to_save": ["proj_out"]}, ("proj_out.lora_A.weight",)),
    ],
)
def test_what_changes_no_numbers_is_none(entries: Mapping[str, Any], tensors: tuple[str, ...]) -> None:
    found = source_of({"lora_alpha": 8, **entries}, "here", tensors)
    assert found is not None
    assert found.refusal == found.problem == ""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tiny import TRANSFORMER

from hyvideo_lib.checkpoint.lora_layers import MODULE_NAMES, RELEASED, layer_places, layer_sizes
from hyvideo_lib.checkpoint.lora_match import match_modules

BEFORE = [
    "",
    "diffusion_model.",
    "transformer.",
    "model.diffusion_model.",
    "base_model.model.",
    "base_model.model.transformer.",
    "transformer.base_model.model.",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "net.",
    "model.model.",
    "pipe.dit.unknown_word.",
    "0.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "Hunyuan_video_I2V_lora_",
    "lora_unet__orig_mod_",
]


def modules(layout: str) -> dict[str, tuple[str, int, int]]:
    """What every module of the tiny model in a layout is."""
    return {
        name: (place.layer, place.start, place.stop)
        for layer, size in layer_sizes(TRANSFORMER).items()
        for name, place in layer_places(layer, size.out_features, layout, TRANSFORMER.hidden_size)
    }


def found(stems: Sequence[str]) -> dict[str, tuple[str, int, int]]:
    hits = match_modules(stems, TRANSFORMER)
    return {stem: (hit.place.layer, hit.place.start, hit.place.stop) for stem, hit in hits.items()}


@pytest.mark.parametrize("layout", MODULE_NAMES)
@pytest.mark.parametrize("before", BEFORE)
def test_every_layer_is_found_behind_whatever_the_names_share(layout: str, before: str) -> None:
    expected = {before + name: place for name, place in modules(layout).items()}
    assert found(list(expected)) == expected
    hits = match_modules(list(expected), TRANSFORMER)
    assert {hit.prefix for hit in hits.values()} == {before}
    assert all(hit.prefix + hit.name == stem for stem, hit in hits.items())


@pytest.mark.parametrize("layout", MODULE_NAMES)
def test_dots_may_be_underscores_everywhere_or_in_part(layout: str) -> None:
    for spell in (lambda name: name.replace(".", "_"), lambda name: name.replace(".", "_", 1)):
        expected = {f"lora_unet_{spell(name)}": place for name, place in modules(layout).items()}
        assert found(list(expected)) == expected
        everything = {name for each in MODULE_NAMES for name in modules(each)}
        flat = match_modules([stem for stem in expected if "." not in stem], TRANSFORMER)
        assert {hit.name for hit in flat.values()} <= everything  # as PEFT's patterns know them


@pytest.mark.parametrize(
    "infix",
    [
        "_orig_mod.",
        "_fsdp_wrapped_module.",
        "_checkpoint_wrapped_module.",
        "module.",
        "inner.",
        "my_wrapper._orig_mod.",
    ],
)
def test_words_of_wrappers_may_stand_inside(infix: str) -> None:
    names = [name for name in modules("tencent") if name.startswith(("double_blocks.", "single_blocks."))]
    stems = {}
    for name in names:
        kind, index, rest = name.split(".", 2)
        stems[f"transformer.{kind}.{index}.{infix}{rest}"] = modules("tencent")[name]
    assert found(list(stems)) == stems


@pytest.mark.parametrize("end", [".base_layer", "._orig_mod"])
def test_words_of_wrappers_may_stand_behind(end: str) -> None:
    assert (
        found([f"double_blocks.0.img_mlp.fc1{end}"])[f"double_blocks.0.img_mlp.fc1{end}"][0]
        == "double_blocks.0.img_mlp.fc1"
    )


@pytest.mark.parametrize(
    "stem",
    [
        "diffusion_model.blocks.0.self_attn.q",  # Wan
        "transformer.transformer_blocks.0.attn1.to_q",  # LTX
        "lora_unet_down_blocks_0_attentions_0_proj_out",  # Stable Diffusion
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "double_blocks.9.img_mlp.fc1",  # beyond the model's
        "single_transformer_blocks.9.attn.to_q",
        "context_embedder.token_refiner.refiner_blocks.9.norm_out.linear",
        "double_blocks.0.img_mlp.fc3",
        "",
        "...",
    ],
)
def test_other_names_are_no_layers(stem: str) -> None:
    assert found([stem]) == {}
    assert list(found([stem, "transformer.double_blocks.0.img_mlp.fc1"])) == ["transformer.double_blocks.0.img_mlp.fc1"]


def test_blocks_of_one_kind_are_not_taken_for_the_others() -> None:
    assert TRANSFORMER.num_single_blocks == 2
    many = RELEASED
    stem = f"transformer.single_transformer_blocks.{many.num_single_blocks}.attn.to_q"
    assert match_modules([stem], many) == {}
    assert match_modules(["single_transformer_blocks.19.attn.to_q"], many)
    # A block that the single ones have not and the double ones have.
    from dataclasses import replace

    fewer = replace(TRANSFORMER, num_single_blocks=1)
    assert match_modules(["transformer.single_transformer_blocks.1.attn.to_q"], fewer) == {}
    assert match_modules(["transformer.transformer_blocks.1.attn.to_q"], fewer)


def test_short_names_count_only_behind_what_stands_before_the_blocks() -> None:
    block = "transformer.transformer_blocks.0.attn.to_q"
    assert set(found([block, "transformer.proj_out", "text_encoder.proj_out"])) == {block, "transformer.proj_out"}
    assert set(found(["anything.proj_out"])) == {"anything.proj_out"}
    assert found(["one.proj_out", "two.proj_out"]) == {}


def test_names_of_two_prefixes_are_found_both() -> None:
    assert len(found(["a.double_blocks.0.img_mlp.fc1", "b.double_blocks.1.img_mlp.fc1"])) == 2

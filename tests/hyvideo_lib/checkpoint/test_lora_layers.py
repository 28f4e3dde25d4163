from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny import TRANSFORMER, layout

from hyvideo_lib.checkpoint.keymaps import our_name
from hyvideo_lib.checkpoint.lora_layers import (
    MODULE_NAMES,
    RELEASED,
    LayerSize,
    Place,
    adaptable_layers,
    every_name,
    layer_places,
    layer_sizes,
    words_of,
)


def test_every_matrix_and_every_norm_of_the_released_model_can_have_a_lora() -> None:
    shapes = layout("tencent_transformer_t2v")
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    sizes = layer_sizes(RELEASED)
    assert set(sizes) == set(weights)
    assert {name for name, size in sizes.items() if size.is_vector} == {
        name for name, shape in weights.items() if len(shape) == 1
    }
    assert {name for name, size in sizes.items() if not size.has_bias} == {
        name for name in weights if f"{name}.bias" not in shapes
    }
    conv = shapes["img_in.proj.weight"]
    assert (sizes["img_in.proj"].out_features, sizes["img_in.proj"].in_features) == (conv[0], conv[1] * 4)


def test_a_convolutions_inputs_are_all_that_its_kernel_covers() -> None:
    model = torch.nn.Module()
    model.conv = torch.nn.Conv3d(2, 7, (3, 4, 5))
    model.conv.adapters = []
    model.bare = torch.nn.Conv3d(2, 7, 1)
    assert adaptable_layers(model) == {"conv": LayerSize(7, 2 * 3 * 4 * 5)}


@pytest.mark.parametrize("recorded", ["tencent_transformer_t2v", "comfy_transformer_t2v", "diffusers_transformer_t2v"])
def test_every_module_of_the_recorded_layouts_is_found(recorded: str) -> None:
    names = every_name(RELEASED)
    shapes = {
        name.removesuffix(".weight").removesuffix(".scale"): shape
        for name, shape in layout(recorded).items()
        if name.endswith((".weight", ".scale"))
    }
    rows = Counter()
    for module, shape in shapes.items():
        place = names[words_of(module)][module]
        assert place.stop - place.start == shape[0]
        rows[place.layer] += shape[0]
    assert rows == {layer: size.out_features for layer, size in layer_sizes(RELEASED).items()}  # each row once


def test_no_name_means_two_places() -> None:
    spelled: dict[tuple[str, ...], set[tuple[str, int, int]]] = {}
    for layout_name in MODULE_NAMES:
        for layer, size in layer_sizes(RELEASED).items():
            for name, place in layer_places(layer, size.out_features, layout_name, RELEASED.hidden_size):
                spelled.setdefault(words_of(name), set()).add((place.layer, place.start, place.stop))
    assert [name for name, places in spelled.items() if len(places) > 1] == []


def test_dots_and_underscores_are_equal() -> None:
    assert words_of("double_blocks.0._img__mod.linear") == ("double", "blocks", "0", "img", "mod", "linear")
    assert words_of("._.") == ()


def test_parts_of_a_fused_layer_are_its_rows() -> None:
    size = TRANSFORMER.hidden_size
    names = every_name(TRANSFORMER)
    for part, (name, rows) in enumerate([("to_q", size), ("to_k", size), ("to_v", size)]):
        place = names[words_of(f"single_transformer_blocks.1.attn.{name}")][f"single_transformer_blocks.1.attn.{name}"]
        assert place == Place("single_blocks.1.linear1", part * size, part * size + rows, "diffusers")
    mlp = names[words_of("single_transformer_blocks.1.proj_mlp")]["single_transformer_blocks.1.proj_mlp"]
    assert (mlp.start, mlp.stop) == (3 * size, 7 * size)
    assert names[words_of("norm_out.linear")]["norm_out.linear"].swaps_halves
    assert not names[words_of("final_layer.adaLN_modulation.1")]["final_layer.adaLN_modulation.1"].swaps_halves


def test_blocks_beyond_the_models_are_no_names() -> None:
    assert words_of("double_blocks.1.img_attn_qkv") in every_name(TRANSFORMER)
    assert words_of("double_blocks.2.img_attn_qkv") not in every_name(TRANSFORMER)


def test_rules_and_names_agree() -> None:
    for name in ("transformer_blocks.0.attn.add_k_proj", "proj_out", "single_transformer_blocks.1.proj_out"):
        hit = our_name("transformer", "diffusers", name)
        assert hit is not None
        assert every_name(TRANSFORMER)[words_of(name)][name].layer == hit[0]

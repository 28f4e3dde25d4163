from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny import TRANSFORMER, layout

from hyvideo_lib.checkpoint.keymaps import our_name
from hyvideo_lib.lora.families import DOTTED_PREFIXES, MODULE_NAMES, UNDERSCORED_PREFIXES
from hyvideo_lib.lora.names import LayerSize, Place, adaptable_layers, every_name, layer_places, layer_sizes
from hyvideo_lib.transformer import TransformerConfig

RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)


def test_every_matrix_of_the_released_model_can_have_a_lora_and_no_norm_can() -> None:
    shapes = layout("tencent_transformer_t2v")
    matrices = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1}
    sizes = layer_sizes(RELEASED)
    assert set(sizes) == matrices
    conv = shapes["img_in.proj.weight"]
    assert (sizes["img_in.proj"].out_features, sizes["img_in.proj"].in_features) == (conv[0], conv[1] * 4)


def test_a_convolutions_inputs_are_all_that_its_kernel_covers() -> None:
    model = torch.nn.Module()
    model.conv = torch.nn.Conv3d(2, 7, (3, 4, 5))
    model.conv.adapters = []
    model.bare = torch.nn.Conv3d(2, 7, 1)
    assert adaptable_layers(model) == {"conv": LayerSize(7, 2 * 3 * 4 * 5)}


@pytest.mark.parametrize("recorded", ["tencent_transformer_t2v", "comfy_transformer_t2v", "diffusers_transformer_t2v"])
@pytest.mark.parametrize("prefix", [*DOTTED_PREFIXES, *UNDERSCORED_PREFIXES])
def test_every_module_of_the_recorded_layouts_is_found_with_every_prefix(recorded: str, prefix: str) -> None:
    names = every_name(RELEASED)
    modules = [name.removesuffix(".weight") for name, shape in layout(recorded).items() if len(shape) > 1]
    flat = prefix in UNDERSCORED_PREFIXES
    places = [names[prefix + (module.replace(".", "_") if flat else module)] for module in modules]
    rows = Counter()
    for place, module in zip(places, modules, strict=True):
        assert place.stop - place.start == layout(recorded)[f"{module}.weight"][0]
        rows[place.layer] += place.stop - place.start
    assert rows == {layer: size.out_features for layer, size in layer_sizes(RELEASED).items()}  # each row once


def test_no_name_means_two_places() -> None:
    spelled: dict[str, set[tuple[str, int, int]]] = {}
    for layout_name in MODULE_NAMES:
        for layer, size in layer_sizes(RELEASED).items():
            for name, place in layer_places(layer, size.out_features, layout_name, RELEASED.hidden_size):
                for form in (name, "_" + name.replace(".", "_")):
                    spelled.setdefault(form, set()).add((place.layer, place.start, place.stop))
    assert [name for name, places in spelled.items() if len(places) > 1] == []


def test_names_that_underscores_make_ambiguous_are_found_by_looking_up() -> None:
    names = every_name(TRANSFORMER)
    fused = names["lora_unet_double_blocks_1_img_attn_qkv"]
    assert (fused.layer, fused.start, fused.stop) == ("double_blocks.1.img_attn_qkv", 0, 144)
    assert names["lora_unet_double_blocks_1_img_mlp_0"].layer == "double_blocks.1.img_mlp.fc1"
    assert names["lora_unet_double_blocks_1_img_mlp_fc1"].layer == "double_blocks.1.img_mlp.fc1"


def test_parts_of_a_fused_layer_are_its_rows() -> None:
    size = TRANSFORMER.hidden_size
    names = every_name(TRANSFORMER)
    for part, (name, rows) in enumerate([("to_q", size), ("to_k", size), ("to_v", size)]):
        place = names[f"transformer.single_transformer_blocks.1.attn.{name}"]
        assert place == Place("single_blocks.1.linear1", part * size, part * size + rows, "diffusers")
    mlp = names["transformer.single_transformer_blocks.1.proj_mlp"]
    assert (mlp.start, mlp.stop) == (3 * size, 7 * size)
    assert names["norm_out.linear"].swaps_halves
    assert not names["final_layer.adaLN_modulation.1"].swaps_halves


def test_blocks_beyond_the_models_are_no_names() -> None:
    assert "lora_unet_double_blocks_1_img_attn_qkv" in every_name(TRANSFORMER)
    assert "lora_unet_double_blocks_2_img_attn_qkv" not in every_name(TRANSFORMER)


def test_rules_and_names_agree() -> None:
    for name in ("transformer_blocks.0.attn.add_k_proj", "proj_out", "single_transformer_blocks.1.proj_out"):
        hit = our_name("transformer", "diffusers", name)
        assert hit is not None
        assert every_name(TRANSFORMER)[name].layer == hit[0]

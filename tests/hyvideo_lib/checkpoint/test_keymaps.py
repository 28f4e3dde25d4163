"""Names of every layout against the key lists of the released files, in both directions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from hyvideo_lib.checkpoint.keymap_tables import SQUEEZE, SWAP_HALVES
from hyvideo_lib.checkpoint.keymaps import (
    COMPANIONS,
    Source,
    apply_operation,
    our_name,
    part_rows,
    their_names,
    to_tencent,
    undo_operation,
)
from hyvideo_lib.checkpoint.read import Header, TensorInfo

LAYOUTS = Path(__file__).parents[2] / "goldens" / "layouts"
VARIANTS = ("t2v", "i2v_v1_latent_concat", "i2v_v2_token_replace")
H = 3072


def expand(entries: dict) -> dict[str, tuple[tuple[int, ...], str]]:
    """A key list with its `{0..19}` written out."""
    expanded = {}
    for name, (shape, dtype) in entries.items():
        span = re.search(r"\{(\d+)\.\.(\d+)\}", name)
        indices = range(int(span[1]), int(span[2]) + 1) if span else [None]
        for index in indices:
            full = name if index is None else name.replace(span[0], str(index))
            expanded[full] = (tuple(shape), dtype)
    return expanded


def read_layout(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    return expand(json.loads((LAYOUTS / f"{name}.json").read_text())["entries"])


def make_header(entries: dict[str, tuple[tuple[int, ...], str]]) -> Header:
    tensors, start = {}, 0
    for name, (shape, dtype) in entries.items():
        end = start + torch.Size(shape).numel() * getattr(torch, dtype).itemsize
        tensors[name] = TensorInfo(name, dtype, shape, start, end)
        start = end
    return Header(Path("file.safetensors"), tensors, {}, start)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=("comfyui", "diffusers"))
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


def layout_file(layout: str, variant: str) -> str:
    return f"{'comfy' if layout == 'comfyui' else layout}_transformer_{variant}"


def test_every_tensor_of_a_transformer_gets_its_name_and_shape(layout: str, variant: str) -> None:
    header = make_header(read_layout(layout_file(layout, variant)))
    translated = to_tencent(header, "transformer", layout)
    assert translated.leftover == ()
    expected = read_layout(f"tencent_transformer_{variant}")
    assert {name: info.shape for name, info in translated.header.tensors.items()} == {
        name: shape for name, (shape, _) in expected.items()
    }


def test_nothing_of_the_file_is_lost_or_used_twice(layout: str, variant: str) -> None:
    header = make_header(read_layout(layout_file(layout, variant)))
    translated = to_tencent(header, "transformer", layout)
    used = [source.name for sources in translated.sources.values() for source in sources]
    assert sorted(used) == sorted(header.tensors)
    assert sum(info.num_bytes for info in translated.header.tensors.values()) == header.file_size


def test_the_way_back_gives_their_names(layout: str, variant: str) -> None:
    ours, theirs = read_layout(f"tencent_transformer_{variant}"), read_layout(layout_file(layout, variant))
    back = [source.name for name in ours for source in their_names("transformer", layout, name)]
    assert sorted(back) == sorted(theirs)


def test_the_comfyui_names_are_those_of_the_recorded_map() -> None:
    recorded = json.loads((LAYOUTS / "map_tencent_to_comfy_transformer.json").read_text())["map"]
    for ours, theirs in recorded.items():
        ours, theirs = ours.replace("{i}", "7"), theirs.replace("{i}", "7")
        assert [source.name for source in their_names("transformer", "comfyui", ours)] == [theirs]
        assert our_name("transformer", "comfyui", theirs) == (ours, Source(theirs))


def test_the_diffusers_names_and_operations_are_those_of_the_recorded_map() -> None:
    recorded = json.loads((LAYOUTS / "map_tencent_to_diffusers_transformer.json").read_text())["map"]
    for ours, entry in recorded.items():
        ours = ours.replace("{i}", "1")
        theirs = [entry["to"]] if isinstance(entry["to"], str) else entry["to"]
        operation = SWAP_HALVES if entry["op"].startswith("swap") else ""
        expected = tuple(
            Source(name.replace("{i}", "1"), part, len(theirs), operation) for part, name in enumerate(theirs)
        )
        assert their_names("transformer", "diffusers", ours) == expected


def test_every_tensor_of_the_comfyui_vae_gets_its_name_and_shape() -> None:
    recorded = json.loads((LAYOUTS / "vae_comfy.json").read_text())["map_tencent_to_comfy"]
    ours = read_layout("vae_tencent_diffusers")
    theirs = {}
    for name, (shape, dtype) in ours.items():
        is_attention = ".attentions.0.to_" in name and len(shape) == 2
        theirs[recorded[name]] = ((*shape, 1, 1, 1) if is_attention else shape, dtype)
    translated = to_tencent(make_header(theirs), "vae", "comfyui")
    assert translated.leftover == ()
    assert {name: info.shape for name, info in translated.header.tensors.items()} == {
        name: shape for name, (shape, _) in ours.items()
    }
    for name in ours:
        (source,) = translated.sources[name]
        assert source.name == recorded[name]
        assert their_names("vae", "comfyui", name) == (source,)
        assert (source.operation == SQUEEZE) == (len(ours[name][0]) == 2)


def test_a_layout_without_rules_has_tencents_names() -> None:
    header = make_header(read_layout("tencent_transformer_t2v"))
    translated = to_tencent(header, "transformer", "tencent")
    assert translated.header is header
    assert translated.sources["img_in.proj.bias"] == (Source("img_in.proj.bias"),)
    assert their_names("transformer", "tencent", "anything") == (Source("anything"),)
    assert our_name("vae", "tencent", "anything") == ("anything", Source("anything"))


LEAVES = ("comfy_quant", "fp8_scale", "input_scale", "scale_input", "scale_weight", "weight_scale", "weight_scale_2")


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_numbers_beside_a_weight_go_with_it(leaf: str) -> None:
    theirs = f"double_blocks.3.img_attn.qkv.{leaf}"
    assert our_name("transformer", "comfyui", theirs) == (f"double_blocks.3.img_attn_qkv.{leaf}", Source(theirs))
    assert their_names("transformer", "comfyui", f"double_blocks.3.img_attn_qkv.{leaf}") == (Source(theirs),)


def test_the_companions_are_those_that_files_have() -> None:
    assert sorted(COMPANIONS) == sorted(LEAVES)


def test_modules_are_translated_without_a_tensor_name() -> None:
    assert [source.name for source in their_names("transformer", "diffusers", "single_blocks.39.linear1")] == [
        f"single_transformer_blocks.39.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    assert their_names("transformer", "diffusers", "final_layer.adaLN_modulation.1") == (
        Source("norm_out.linear", operation=SWAP_HALVES),
    )
    assert our_name("transformer", "comfyui", "double_blocks.0.img_attn.norm.query_norm") == (
        "double_blocks.0.img_attn_q_norm",
        Source("double_blocks.0.img_attn.norm.query_norm"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "double_blocks.00.img_attn.qkv.weight",
        "double_blocks.12345.img_attn.qkv.weight",
        "double_blocks.٣.img_attn.qkv.weight",
        "double_blocks.{}.img_attn.qkv.weight",
        "double_blocks..img_attn.qkv.weight",
        "double_blocks.0.img_attn.qkv.weight.extra",
        "img_attn.qkv.weight",
        ".weight",
        "weight",
        "",
    ],
)
def test_names_that_no_rule_knows_are_left_over(name: str) -> None:
    assert our_name("transformer", "comfyui", name) is None
    translated = to_tencent(make_header({name: ((2, 2), "float32")}), "transformer", "comfyui")
    assert translated.leftover == (name,)
    assert not translated.header.tensors


def test_an_unknown_tencent_name_has_no_name_elsewhere() -> None:
    assert their_names("transformer", "comfyui", "triple_blocks.0.weight") == ()
    assert their_names("vae", "comfyui", "decoder.up_blocks.4.resnets.0.norm1.weight") == ()


def test_a_missing_part_leaves_the_others_over() -> None:
    parts = {f"transformer_blocks.0.attn.to_{part}.weight": ((4, 4), "float32") for part in "qk"}
    translated = to_tencent(make_header(parts), "transformer", "diffusers")
    assert sorted(translated.leftover) == sorted(parts)
    assert not translated.header.tensors


@pytest.mark.parametrize("wrong", [(8, 4), (4, 5), (4,), ()])
def test_parts_of_sizes_that_do_not_belong_together_are_left_over(wrong: tuple[int, ...]) -> None:
    parts = {f"transformer_blocks.0.attn.to_{part}.weight": ((4, 4), "float32") for part in "qk"}
    parts["transformer_blocks.0.attn.to_v.weight"] = (wrong, "float32")
    translated = to_tencent(make_header(parts), "transformer", "diffusers")
    assert sorted(translated.leftover) == sorted(parts)


@pytest.mark.parametrize("shape", [(), (4,), (4, 5)])
def test_what_is_no_part_is_a_whole_of_any_shape(shape: tuple[int, ...]) -> None:
    translated = to_tencent(make_header({"img_in.proj.weight": (shape, "float32")}), "transformer", "comfyui")
    assert translated.header.shape("img_in.proj.weight") == shape


@pytest.mark.parametrize(("found", "shape"), [((4, 4, 1, 1, 1), (4, 4)), ((4, 4, 2, 1, 1), (4, 4, 2, 1, 1))])
def test_only_a_kernel_of_one_is_squeezed(found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    translated = to_tencent(make_header({"decoder.mid.attn_1.q.weight": (found, "float32")}), "vae", "comfyui")
    assert [info.shape for info in translated.header.tensors.values()] == [shape]


def test_a_norm_in_either_spelling_is_taken_once() -> None:
    stem = "single_blocks.0.norm.query_norm."
    one = to_tencent(make_header({f"{stem}weight": ((4,), "float32")}), "transformer", "comfyui")
    assert one.leftover == ()
    assert list(one.header.tensors) == ["single_blocks.0.q_norm.weight"]
    both = {f"{stem}scale": ((4,), "float32"), f"{stem}weight": ((4,), "float32")}
    assert to_tencent(make_header(both), "transformer", "comfyui").leftover == (f"{stem}weight",)


def test_the_numbers_of_split_weights_stay_one_for_each_part() -> None:
    names = {f"transformer_blocks.0.attn.to_{part}.scale_weight": ((), "float32") for part in "qv"}
    translated = to_tencent(make_header(names), "transformer", "diffusers")
    name = "double_blocks.0.img_attn_qkv.scale_weight"
    assert [(source.part, source.parts) for source in translated.sources[name]] == [(0, 3), (2, 3)]
    assert translated.header.shape(name) == ()


@pytest.mark.parametrize(
    ("leaf", "operation"), [("weight", SQUEEZE), ("", SQUEEZE), ("bias", ""), ("scale_weight", ""), ("comfy_quant", "")]
)
def test_only_an_attentions_weight_is_squeezed(leaf: str, operation: str) -> None:
    name = f"decoder.mid.attn_1.q.{leaf}".removesuffix(".")
    hit = our_name("vae", "comfyui", name)
    assert hit is not None
    assert hit[1] == Source(name, operation=operation)


@pytest.mark.parametrize(("leaf", "operation"), [("weight", SWAP_HALVES), ("bias", SWAP_HALVES), ("comfy_quant", "")])
def test_a_text_beside_a_weight_has_no_halves(leaf: str, operation: str) -> None:
    sources = their_names("transformer", "diffusers", f"final_layer.adaLN_modulation.1.{leaf}")
    assert sources == (Source(f"norm_out.linear.{leaf}", operation=operation),)


@pytest.mark.parametrize("name", ["scaled_fp8", "fp8_scale"])
def test_a_marker_of_the_whole_file_stays(name: str) -> None:
    translated = to_tencent(make_header({name: ((0,), "float8_e4m3fn")}), "transformer", "comfyui")
    assert translated.leftover == ()
    assert translated.sources[name] == (Source(name),)


def test_rows_of_the_parts_follow_from_the_width() -> None:
    assert part_rows(3 * H, 3, H) == (H, H, H)
    assert part_rows(7 * H, 4, H) == (H, H, H, 4 * H)
    assert part_rows(5, 1, H) == (5,)


@pytest.mark.parametrize(
    ("operation", "shape"), [(SWAP_HALVES, (6, 2)), (SWAP_HALVES, (6,)), (SQUEEZE, (2, 2)), ("", (3,))]
)
def test_operations_can_be_undone(operation: str, shape: tuple[int, ...]) -> None:
    ours = torch.randn(shape)
    theirs = undo_operation(operation, ours)
    assert torch.equal(apply_operation(operation, theirs), ours)


def test_operations_do_what_they_are_called() -> None:
    assert apply_operation(SWAP_HALVES, torch.arange(6)).tolist() == [3, 4, 5, 0, 1, 2]
    assert apply_operation(SWAP_HALVES, torch.arange(2)).tolist() == [1, 0]
    assert apply_operation(SWAP_HALVES, torch.tensor(2.0)).tolist() == 2.0
    assert undo_operation(SQUEEZE, torch.ones(2, 3)).shape == (2, 3, 1, 1, 1)

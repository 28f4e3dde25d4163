"""Files of every layout, storage and packing become safetensors files that hold the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyvideo_lib.checkpoint import load_transformer, read_header
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.rewrite import LAYOUTS, STORAGES, Request
from hyvideo_lib.errors import (
    FileMissing,
    HyvError,
    Interrupted,
    InvalidSetting,
    OutputExists,
    UnsupportedFile,
    WrongKind,
)
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.quant import cast_fp8, dequantize_fp8, plain_fp8_state_dict, quantize_fp8
from tests.hyvideo_lib.checkpoint.conversions import (
    AXES,
    GROUPS,
    convert,
    same,
    weights_of,
    with_scales,
    write,
)
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS, VAE_LAYOUTS


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_every_layout_becomes_every_other(tmp_path: Path, source: str, target: str) -> None:
    weights = weights_of()
    found = convert(tmp_path, TRANSFORMER_LAYOUTS[source](weights), layout=target)
    assert same(found, TRANSFORMER_LAYOUTS[target](weights))


@pytest.mark.parametrize("source", VAE_LAYOUTS)
@pytest.mark.parametrize("target", ["tencent", "comfyui", "diffusers"])
def test_every_layout_of_the_vae_becomes_every_other(tmp_path: Path, source: str, target: str) -> None:
    weights = weights_of("vae_tiny")
    prefixed = {f"vae.{name}": tensor for name, tensor in VAE_LAYOUTS[source](weights).items()}
    found = convert(tmp_path, prefixed, GROUPS, layout=target)
    assert same(found, VAE_LAYOUTS["comfyui" if target == "comfyui" else "tencent"](weights))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cast_file_loads_as_one_cast_on_loading(tmp_path: Path, storage: str, layout: str) -> None:
    weights, dtype = weights_of(), getattr(torch, storage)
    source = write(tmp_path / "old.safetensors", weights, AXES)
    convert_file(source, tmp_path / "new.safetensors", Request("diffusers", storage))
    convert_file(tmp_path / "new.safetensors", tmp_path / "back.safetensors", Request("tencent"))
    expected = load_transformer(source, storage_dtype=dtype).state_dict()
    assert same(load_file(tmp_path / "back.safetensors"), dict(expected))


def test_prefixes_go_and_metadata_stays(tmp_path: Path) -> None:
    weights = weights_of()
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}
    assert same(convert(tmp_path, prefixed), weights)
    assert read_header(tmp_path / "new.safetensors").metadata == AXES


def test_the_manifest_tells_what_changed(tmp_path: Path) -> None:
    weights = weights_of()
    source = write(tmp_path / "old.safetensors", weights | {"position_of_nothing": torch.ones(1)}, AXES)
    source = write(tmp_path / "old.safetensors", {f"module.{name}": tensor for name, tensor in weights.items()}, AXES)
    manifest = convert_file(source, tmp_path / "new.safetensors", Request("diffusers", "float8_e4m3fn"))
    assert manifest["from"]["layout"] == "tencent"
    assert manifest["from"]["prefix"] == "module."
    assert manifest["to"] == {"layout": "diffusers", "storage": "float8_e4m3fn", "component": "auto"}
    entries = {entry["name"]: entry for entry in manifest["tensors"]}
    assert manifest["num_tensors"] == len(entries) == len(TRANSFORMER_LAYOUTS["diffusers"](weights))
    split = entries["single_transformer_blocks.0.proj_mlp.weight"]
    assert split["from"] == ["module.single_blocks.0.linear1.weight"]
    assert (split["from_dtype"], split["dtype"]) == ("bfloat16", "float8_e4m3fn")
    assert split["changes"] == ["cast", "split", "renamed"]
    assert entries["norm_out.linear.bias"]["changes"] == ["swap halves", "renamed"]
    assert manifest["dropped"] == []
    json.dumps(manifest)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_go_with_their_weights(tmp_path: Path, layout: str) -> None:
    stored, scales = with_scales(weights_of())
    beside = stored | {f"{name}.fp8_scale": scale for name, scale in scales.items()}
    expected = load_transformer(write(tmp_path / "old.safetensors", beside, AXES), torch.float32).state_dict()
    convert(tmp_path, beside, layout=layout)
    found = load_transformer(tmp_path / "new.safetensors", torch.float32)
    for name, tensor in expected.items():
        if name.endswith(("attn_qkv.weight", "linear1.weight")):
            assert torch.equal(found.get_submodule(name.removesuffix(".weight")).dense_weight(torch.float32), tensor)
        else:
            assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("storage", ["bfloat16", "float8_e5m2"])
def test_scaled_weights_are_restored_for_another_storage(tmp_path: Path, storage: str) -> None:
    stored, scales = with_scales(weights_of())
    found = convert(tmp_path, stored | {f"{name}.fp8_scale": scale for name, scale in scales.items()}, storage=storage)
    assert not [name for name in found if name.endswith("scale")]
    name = "single_blocks.1.linear2"
    if storage == "bfloat16":
        expected = dequantize_fp8(stored[f"{name}.weight"], scales[name], torch.bfloat16)
    else:
        dense = dequantize_fp8(stored[f"{name}.weight"], scales[name], torch.float32)
        expected = cast_fp8(dense, torch.float8_e5m2)
    assert same({name: found[f"{name}.weight"]}, {name: expected})


def test_the_scale_map_beside_a_file_goes_into_the_new_one(tmp_path: Path) -> None:
    stored, scales = with_scales(weights_of())
    write(tmp_path / "old_map.safetensors", scales)
    found = convert(tmp_path, stored)
    assert same(found, stored | {f"{name}.fp8_scale": scale for name, scale in scales.items()})


def test_parts_with_scales_of_their_own_need_a_storage(tmp_path: Path) -> None:
    split = TRANSFORMER_LAYOUTS["diffusers"](weights_of())
    for part in "qkv":
        name = f"transformer_blocks.0.attn.to_{part}."
        split[f"{name}weight"], split[f"{name}fp8_scale"] = quantize_fp8(split[f"{name}weight"])
    with pytest.raises(UnsupportedFile, match=r"of their own for q, k and v.*--storage"):
        convert(tmp_path, split, layout="tencent")
    found = convert(tmp_path, split, layout="tencent", storage="float32")
    pieces = [
        dequantize_fp8(
            split[f"transformer_blocks.0.attn.to_{part}.weight"],
            split[f"transformer_blocks.0.attn.to_{part}.fp8_scale"],
            torch.float32,
        )
        for part in "qkv"
    ]
    assert torch.equal(found["double_blocks.0.img_attn_qkv.weight"], torch.cat(pieces))
    assert same(convert(tmp_path, split), split)


def test_text_encoders_keep_their_names(tmp_path: Path) -> None:
    weights = weights_of("te_llama_tiny")
    metadata = {"hyvideo.config": json.dumps({"head_dim": 8})}
    assert same(convert(tmp_path, weights, metadata), weights)
    with pytest.raises(InvalidSetting, match="only one layout of a Llama"):
        convert(tmp_path, weights, metadata, layout="tencent")


def test_the_new_file_begins_every_tensor_where_it_can_be_mapped(tmp_path: Path) -> None:
    weights = weights_of() | {"final_layer.linear.bias": weights_of()["final_layer.linear.bias"].float()}
    convert(tmp_path, plain_fp8_state_dict(weights))
    header = read_header(tmp_path / "new.safetensors")
    for info in header.tensors.values():
        assert info.start % getattr(torch, info.dtype).itemsize == 0, info.name


# Refusals


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"layout": "flux"}, InvalidSetting),
        ({"storage": "int4"}, InvalidSetting),
        ({"component": "lora"}, InvalidSetting),
        ({"component": "any", "layout": "tencent"}, InvalidSetting),
        ({"component": "vae"}, WrongKind),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, change: dict[str, str], error: type[HyvError]) -> None:
    with pytest.raises(error):
        convert(tmp_path, weights_of(), **change)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_vae_is_not_stored_in_fp8(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="Only transformers"):
        convert(tmp_path, weights_of("vae_tiny"), GROUPS, storage="float8_e4m3fn")


def test_an_unknown_file_needs_to_be_asked_for(tmp_path: Path) -> None:
    odd = {"some.weight": torch.ones(2, 2), "some.count": torch.ones(2, dtype=torch.int64)}
    with pytest.raises(UnsupportedFile, match="--component any"):
        convert(tmp_path, odd, None)
    found = convert(tmp_path, odd, None, component="any", storage="float16")
    assert same(found, {"some.weight": odd["some.weight"].half(), "some.count": odd["some.count"]})


def test_an_existing_file_stays_unless_told(tmp_path: Path) -> None:
    source = write(tmp_path / "old.safetensors", weights_of(), AXES)
    target = tmp_path / "new.safetensors"
    target.write_text("mine")
    with pytest.raises(OutputExists):
        convert_file(source, target)
    assert target.read_text() == "mine"
    convert_file(source, target, overwrite=True)
    assert same(load_file(target), weights_of())


def test_a_file_can_be_replaced_by_its_own_conversion(tmp_path: Path) -> None:
    source = write(tmp_path / "old.safetensors", weights_of(), AXES)
    convert_file(source, source, Request("comfyui"), overwrite=True)
    assert same(load_file(source), TRANSFORMER_LAYOUTS["comfyui"](weights_of()))


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "old.safetensors", weights_of(), AXES)
    with pytest.raises(InvalidSetting, match=r"must end in \.safetensors"):
        convert_file(source, tmp_path / "new.pt")
    with pytest.raises(FileMissing):
        convert_file(tmp_path / "absent", tmp_path / "new.safetensors")


def test_a_stopped_conversion_leaves_nothing(tmp_path: Path) -> None:
    host = HeadlessHost(on_step=lambda done, total: host.cancel() if done == 5 else None)
    source = write(tmp_path / "old.safetensors", weights_of(), AXES)
    with pytest.raises(Interrupted):
        convert_file(source, tmp_path / "new.safetensors", host=host)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.safetensors"]

"""Files of every layout, storage and packing become safetensors files that hold the same numbers."""

from __future__ import annotations

import json
import os
import pickle
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyvideo_lib.checkpoint import isolate, load_transformer, read_header
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.isolate import check_pickle, check_torch
from hyvideo_lib.checkpoint.rewrite import LAYOUTS, STORAGES, Request
from hyvideo_lib.checkpoint.unpickle import FREE_BYTES, open_pickle
from hyvideo_lib.errors import (
    FileMissing,
    FileUnreadable,
    HyvError,
    Interrupted,
    InvalidSetting,
    OutputExists,
    UnsupportedFile,
    WrongKind,
)
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.quant import cast_fp8, dequantize_fp8, plain_fp8_state_dict, quantize_fp8
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS, VAE_LAYOUTS

Weights = dict[str, Tensor]
GOLDENS = Path(__file__).parents[2] / "goldens"
AXES = {"hyvideo.config": json.dumps({"rope_axes": [4, 10, 10]})}
GROUPS = {"hyvideo.config": json.dumps({"norm_groups": 4})}
FP8 = torch.float8_e4m3fn


def weights_of(name: str = "dit_tiny_t2v") -> Weights:
    return load_file(GOLDENS / f"{name}.weights.safetensors")


def write(path: Path, weights: Weights, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata)
    return path


def same(found: Weights, expected: Weights) -> bool:
    assert found.keys() == expected.keys()
    return all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and torch.equal(found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))
        for name, tensor in expected.items()
    )


def with_scales(weights: Weights) -> tuple[Weights, Weights]:
    """(weights with those of the blocks in fp8, their scales by module)."""
    stored, scales = dict(weights), {}
    for name, tensor in weights.items():
        if name.startswith(("double_blocks", "single_blocks")) and tensor.ndim == 2:
            stored[name], scales[name.removesuffix(".weight")] = quantize_fp8(tensor)
    return stored, scales


def convert(tmp_path: Path, weights: Weights, metadata: dict[str, str] | None = AXES, **request: Any) -> Weights:
    source, target = write(tmp_path / "old.safetensors", weights, metadata), tmp_path / "new.safetensors"
    convert_file(source, target, Request(**request), overwrite=True)
    return load_file(target)


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


# Pickles


WRAPPINGS: dict[str, tuple[Callable[[Weights], Any], list[str]]] = {
    "bare": (dict, []),
    "ordered": (OrderedDict, []),
    "module": (lambda weights: {"module": weights}, ["module"]),
    "ema": (lambda weights: {"ema": weights, "step": 7}, ["ema"]),
    "state_dict": (lambda weights: {"state_dict": weights, "epoch": 1, "name": "x"}, ["state_dict"]),
    "two": (lambda weights: {"model": {"module": weights}}, ["model", "module"]),
    "module and ema": (lambda weights: {"ema": {"a": torch.ones(1)}, "module": weights}, ["module"]),
    "parameters": (lambda weights: {name: torch.nn.Parameter(tensor, False) for name, tensor in weights.items()}, []),
}


def real_weights() -> Weights:
    """A small transformer whose sizes the names and shapes tell, as a pickle has no metadata."""
    return weights_of("dit_headdim128_t2v")


@pytest.mark.parametrize(("wrapping", "expected"), [(name, entry[1]) for name, entry in WRAPPINGS.items()])
def test_what_programs_wrap_around_the_weights_is_taken_off(tmp_path: Path, wrapping: str, expected: list[str]) -> None:
    weights = weights_of()
    torch.save(WRAPPINGS[wrapping][0](weights), tmp_path / "old.pt")
    opened, facts = open_pickle(tmp_path / "old.pt")
    assert same(dict(opened.tensors), weights)
    assert facts["wrappers"] == expected
    assert {name: info.shape for name, info in opened.header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in weights.items()
    }


def test_a_pickle_becomes_safetensors(tmp_path: Path) -> None:
    weights = real_weights()
    torch.save(
        {"module": {f"module.{name}": tensor for name, tensor in weights.items()}, "step": 7}, tmp_path / "old.pt"
    )
    manifest = convert_file(tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert same(load_file(tmp_path / "new.safetensors"), weights)
    assert manifest["from"]["kind"] == "transformer"
    assert manifest["from"]["prefix"] == "module."


def test_what_is_no_tensor_is_left_out_and_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "epoch": 3, 5: torch.zeros(2)}, tmp_path / "old.pt")
    opened, facts = open_pickle(tmp_path / "old.pt")
    assert list(opened.tensors) == ["a"]
    assert facts["ignored"] == ["5", "epoch"]


def test_names_can_be_kept_as_they_are(tmp_path: Path) -> None:
    weights = {f"vae.{name}": tensor for name, tensor in weights_of("vae_tiny").items()}
    torch.save({"state_dict": weights}, tmp_path / "old.pt")
    manifest = convert_file(tmp_path / "old.pt", tmp_path / "new.safetensors", Request(component="any"))
    assert manifest["wrappers"] == ["state_dict"]
    assert same(load_file(tmp_path / "new.safetensors"), weights)


def test_a_pickle_is_converted_to_another_layout_and_storage(tmp_path: Path) -> None:
    weights = real_weights()
    torch.save({"module": weights}, tmp_path / "old.pt")
    convert_file(tmp_path / "old.pt", tmp_path / "new.safetensors", Request("comfyui", "float8_e4m3fn"))
    assert same(load_file(tmp_path / "new.safetensors"), TRANSFORMER_LAYOUTS["comfyui"](plain_fp8_state_dict(weights)))


def test_tencents_fp8_pickle_takes_its_map_along(tmp_path: Path) -> None:
    stored, scales = with_scales(real_weights())
    torch.save({"module": stored}, tmp_path / "mp_fp8.pt")
    torch.save(scales, tmp_path / "mp_fp8_map.pt")
    convert_file(tmp_path / "mp_fp8.pt", tmp_path / "new.safetensors")
    assert same(
        load_file(tmp_path / "new.safetensors"), stored | {f"{name}.fp8_scale": scale for name, scale in scales.items()}
    )
    convert_file(tmp_path / "mp_fp8_map.pt", tmp_path / "map.safetensors")
    assert same(load_file(tmp_path / "map.safetensors"), scales)


class RunsCode:
    """What a hostile pickle holds."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path, is_nested: bool) -> None:
    mark = tmp_path / "ran"
    hostile = RunsCode(os.system, f"touch {mark}")
    torch.save({"module": {"a": hostile}} if is_nested else hostile, tmp_path / "old.pt")
    with pytest.raises(UnsupportedFile, match=r"asks for \w+\.system, which is no tensor"):
        convert_file(tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pt"]


def old_pickle(path: Path) -> None:
    torch.save(weights_of(), path, _use_new_zipfile_serialization=False)


def python_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(9)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def cut_short(path: Path) -> None:
    torch.save({"a": torch.zeros(999)}, path)
    path.write_bytes(path.read_bytes()[:-600])


def no_table(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def no_tensors(path: Path) -> None:
    torch.save({"a": 1}, path)


def expanded(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)


def sparse(path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (old_pickle, "an old PyTorch or Python pickle"),
        (python_pickle, "an old PyTorch or Python pickle"),
        (compressed, "packed as torch.save packs no file|zip archive|PyTorch"),
        (other_zip, "a zip archive"),
        (cut_short, "zip archive|damaged"),
        (no_table, "holds a list, not a table"),
        (no_tensors, "holds no tensors"),
        (expanded, "of 4000000000000 bytes"),
        (sparse, "torch.sparse_coo"),
    ],
)
def test_other_pickles_are_refused_in_a_sentence(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "old.pt")

    def convert_here() -> None:  # what the other process does, which takes seconds to start
        check_pickle(tmp_path / "old.pt")
        open_pickle(tmp_path / "old.pt")

    with pytest.raises((UnsupportedFile, FileUnreadable), match=words):
        convert_here()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pt"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
def test_a_pickle_cannot_take_more_memory_than_its_tensors(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    torch.save({"a": torch.zeros(2), "b": RunsCode(bytearray, 2 * FREE_BYTES)}, tmp_path / "old.pt")
    with pytest.raises(UnsupportedFile, match="more memory than its tensors"):
        open_pickle(tmp_path / "old.pt")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_pickle_under_a_safe_name_is_still_a_pickle(tmp_path: Path) -> None:
    torch.save(RunsCode(os.system, f"touch {tmp_path / 'ran'}"), tmp_path / "old.safetensors")
    with pytest.raises(UnsupportedFile, match="a pickle under the name of a safetensors file"):
        convert_file(tmp_path / "old.safetensors", tmp_path / "new.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0", "2.9.0+cu128", "odd"])
def test_an_older_pytorch_opens_no_pickles(version: str) -> None:
    with pytest.raises(UnsupportedFile, match=r"2\.10 or newer only"):
        check_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0"])
def test_a_newer_pytorch_may(version: str) -> None:
    check_torch(version)


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


def test_a_stopped_child_leaves_nothing(tmp_path: Path) -> None:
    host = HeadlessHost(on_stage=lambda name, total: threading.Timer(0.5, host.cancel).start())
    torch.save({"module": real_weights()}, tmp_path / "old.pt")
    with pytest.raises(Interrupted):
        convert_file(tmp_path / "old.pt", tmp_path / "new.safetensors", host=host)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pt"]


def test_a_child_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "BASE_SECONDS", 0)
    torch.save({"module": real_weights()}, tmp_path / "old.pt")
    with pytest.raises(FileUnreadable, match="not read in the time"):
        convert_file(tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pt"]

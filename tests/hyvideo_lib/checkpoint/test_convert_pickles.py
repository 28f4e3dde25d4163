"""Pickles become safetensors files in a process of their own, or are refused; none of them runs."""

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
from safetensors.torch import load_file

from hyvideo_lib.checkpoint import inspect_file, isolate
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.isolate import check_pickle, check_torch
from hyvideo_lib.checkpoint.rewrite import Request
from hyvideo_lib.checkpoint.unpickle import FREE_BYTES, open_pickle, open_pickles
from hyvideo_lib.errors import (
    FileMissing,
    FileUnreadable,
    Interrupted,
    UnsupportedFile,
)
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.quant import plain_fp8_state_dict
from tests.hyvideo_lib.checkpoint.conversions import (
    Weights,
    same,
    weights_of,
    with_scales,
)
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS

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


# Folders of pickles


def save_parts(folder: Path, weights: Weights, count: int = 2) -> Path:
    """The weights in so many .bin files and their index, as Hugging Face's programs wrote them."""
    folder.mkdir()
    names = [f"pytorch_model-{part + 1:05}-of-{count:05}.bin" for part in range(count)]
    placed = {name: names[place % count] for place, name in enumerate(weights)}
    for file in names:
        torch.save({name: weights[name] for name in weights if placed[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    torch.save({"lr": 1}, folder / "training_args.bin")
    return folder


@pytest.mark.parametrize("given", ["", "pytorch_model.bin.index.json", "pytorch_model-00002-of-00002.bin"])
def test_a_folder_of_pickles_becomes_one_file(tmp_path: Path, given: str) -> None:
    weights = weights_of("vae_tiny")
    folder = save_parts(tmp_path / "vae", weights)
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKLHunyuanVideo", "norm_num_groups": 4, "scaling_factor": 0.5})
    )
    with pytest.raises(UnsupportedFile, match="hyvideo convert"):
        refuse(folder / given)
    convert_file(folder / given, tmp_path / "new.safetensors")
    assert same(load_file(tmp_path / "new.safetensors"), weights)
    report = inspect_file(tmp_path / "new.safetensors")
    assert report.config is not None
    assert (report.kind, report.config["norm_groups"], report.config["scaling"]) == ("vae", 4, 0.5)


def refuse(path: Path) -> None:
    raise UnsupportedFile(inspect_file(path).reason)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.bin"])
def test_a_folder_with_one_pickle_is_that_pickle(tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    torch.save(real_weights(), tmp_path / "model" / name)
    torch.save({"lr": 1}, tmp_path / "model" / "optimizer.bin")
    convert_file(tmp_path / "model", tmp_path / "new.safetensors")
    assert same(load_file(tmp_path / "new.safetensors"), real_weights())


@pytest.mark.parametrize("has_index", [False, True])
def test_missing_parts_are_named_before_anything_is_opened(tmp_path: Path, has_index: bool) -> None:
    folder = save_parts(tmp_path / "vae", weights_of("vae_tiny"), 3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    if not has_index:
        (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(FileMissing, match=r"pytorch_model-00002-of-00003\.bin"):
        convert_file(folder, tmp_path / "new.safetensors")


def test_a_part_that_runs_code_runs_none(tmp_path: Path) -> None:
    folder = save_parts(tmp_path / "vae", weights_of("vae_tiny"))
    torch.save({"a": RunsCode(os.system, f"touch {tmp_path / 'ran'}")}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(UnsupportedFile, match="could run code"):
        convert_file(folder, tmp_path / "new.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vae"]


def test_parts_that_repeat_a_tensor_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "1.bin")
    torch.save({"a": torch.zeros(2)}, tmp_path / "2.bin")
    with pytest.raises(FileUnreadable, match="repeats 'a'"):
        open_pickles(tmp_path, [tmp_path / "1.bin", tmp_path / "2.bin"])

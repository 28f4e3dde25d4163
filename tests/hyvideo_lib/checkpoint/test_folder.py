"""Checkpoints in several files: every way to name them leads to the same whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyvideo_lib.checkpoint.folder import map_header, open_header
from hyvideo_lib.errors import FileMissing, FileTruncated, FileUnreadable, UnsupportedFile

NAMES = [f"diffusion_pytorch_model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]
INDEX = "diffusion_pytorch_model.safetensors.index.json"
TENSORS = {f"layer.{index}.weight": torch.full((2, 3), float(index)) for index in range(6)}


def write_shards(folder: Path, has_index: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    table = {}
    for shard, name in enumerate(NAMES):
        part = {key: TENSORS[key] for key in list(TENSORS)[2 * shard : 2 * shard + 2]}
        save_file(part, folder / name, {"format": "pt"})
        table |= dict.fromkeys(part, name)
    if has_index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "transformer")


@pytest.mark.parametrize("given", ["", INDEX, *NAMES])
@pytest.mark.parametrize("has_index", [True, False])
def test_folder_index_and_each_shard_give_the_whole(tmp_path: Path, given: str, has_index: bool) -> None:
    folder = write_shards(tmp_path / "transformer", has_index)
    if given == INDEX and not has_index:
        with pytest.raises(FileMissing, match="There is no file"):
            open_header(folder / given)
        return
    header = open_header(folder / given)
    assert header.path == folder
    assert header.file_size == sum((folder / name).stat().st_size for name in NAMES)
    tensors = map_header(header)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_part_of_the_names_maps_only_those(folder: Path) -> None:
    header = open_header(folder)
    tensors = map_header(replace(header, tensors={"weight": header.tensors["layer.3.weight"]}))
    assert list(tensors) == ["weight"]
    assert torch.equal(tensors["weight"], TENSORS["layer.3.weight"])


def test_a_single_file_is_itself(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "one.safetensors")
    header = open_header(tmp_path / "one.safetensors")
    assert header.path.name == "one.safetensors"
    assert open_header(tmp_path).tensors.keys() == header.tensors.keys()
    assert map_header(header).keys() == TENSORS.keys()


@pytest.mark.parametrize("given", ["", INDEX, NAMES[0]])
def test_missing_shards_are_named(folder: Path, given: str) -> None:
    (folder / NAMES[1]).unlink()
    with pytest.raises(FileMissing, match=rf"lacks 1 of the 3 .*{NAMES[1]}\. Download"):
        open_header(folder / given)


def test_a_shard_that_is_cut_short_is_named(folder: Path) -> None:
    with (folder / NAMES[2]).open("r+b") as file:
        file.truncate((folder / NAMES[2]).stat().st_size - 4)
    with pytest.raises(FileTruncated, match=NAMES[2]):
        open_header(folder)


def test_a_shard_that_changes_while_it_loads_is_refused(folder: Path) -> None:
    header = open_header(folder)
    with (folder / NAMES[0]).open("ab") as file:
        file.write(b"more")
    with pytest.raises(FileTruncated, match="changed"):
        map_header(header)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shutil.copy(folder / NAMES[0], folder / NAMES[1])
    with pytest.raises(FileUnreadable, match=r"repeats 'layer\.0\.weight'"):
        open_header(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "C:\\x.safetensors", "a\0.safetensors"]
)
def test_an_index_names_only_files_beside_it(folder: Path, name: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"layer.0.weight": name}}))
    with pytest.raises(FileUnreadable, match=r"no \.safetensors file beside it"):
        open_header(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000, "\xff"]
)
def test_a_damaged_index_is_refused(folder: Path, text: str) -> None:
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(FileUnreadable, match=r"index\.json"):
        open_header(folder)


def test_a_claim_of_too_many_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-99999.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(FileUnreadable, match="one of 99999 parts"):
        open_header(path)


def test_a_folder_of_several_models_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file(TENSORS, tmp_path / name)
    with pytest.raises(UnsupportedFile, match=r"several models \(a\.safetensors, b\.safetensors\)"):
        open_header(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"no \.safetensors file"):
        open_header(tmp_path)


def test_a_whole_pipeline_is_told_from_its_parts(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UnsupportedFile, match="transformer, vae or text_encoder"):
        open_header(tmp_path)


def test_sizes_that_tensors_cannot_tell_come_from_the_config(folder: Path) -> None:
    sizes = {"_class_name": "HunyuanVideoTransformer3DModel", "rope_axes_dim": [4, 10, 10], "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(sizes))
    assert json.loads(open_header(folder).metadata["hyvideo.config"]) == {"rope_axes": [4, 10, 10]}
    (folder / "config.json").write_text(json.dumps({"_class_name": "Other", "rope_axes_dim": [4, 10, 10]}))
    assert "hyvideo.config" not in open_header(folder).metadata


def test_names_that_are_no_files_are_missing(tmp_path: Path) -> None:
    for name in (tmp_path / "absent.safetensors", "a\0b", tmp_path / NAMES[0], tmp_path / INDEX):
        with pytest.raises(FileMissing, match="There is no file"):
            open_header(name)

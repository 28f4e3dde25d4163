from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyvideo_lib.errors import FileMissing, UnsupportedFile, WrongKind
from hyvideo_lib.pipeline import Files, check_file, check_files


@pytest.fixture
def paths(tiny_files) -> dict:
    return dict(vars(tiny_files))


def changed(path, folder, config, **tensors):
    save_file({**load_file(path), **tensors}, folder / path.name, {"hyvideo.config": json.dumps(config)})
    return folder / path.name


def test_files_of_one_model_belong_together(paths):
    reports = check_files(Files(**paths))
    assert {role: report.kind for role, report in reports.items()} == {
        "transformer": "transformer",
        "vae": "vae",
        "llm": "llama",
        "clip": "clip",
    }


@pytest.mark.parametrize(("role", "other"), [("transformer", "vae"), ("vae", "clip"), ("llm", "clip"), ("clip", "llm")])
def test_a_file_of_another_kind_is_named(paths, role, other):
    with pytest.raises(WrongKind, match=f"another file as {role}"):
        check_files(Files(**{**paths, role: paths[other]}))


def test_a_missing_file_is_named(paths, tmp_path):
    with pytest.raises(FileMissing, match="nowhere"):
        check_files(Files(**{**paths, "clip": tmp_path / "nowhere"}))


def test_files_of_two_models_are_told_apart(paths, tmp_path):
    wide = torch.zeros(32, 48)
    path = changed(paths["transformer"], tmp_path, {"rope_axes": [4, 6, 6]}, **{"txt_in.input_embedder.weight": wide})
    state = load_file(path)
    # The refiner's text-wide layers follow, so that the file is whole by itself.
    state["txt_in.c_embedder.linear_1.weight"] = torch.zeros(32, 48)
    save_file(state, path, {"hyvideo.config": json.dumps({"rope_axes": [4, 6, 6]})})
    with pytest.raises(UnsupportedFile, match="do not belong together"):
        check_files(Files(**{**paths, "transformer": path}))


def test_an_image_to_video_transformer_is_refused(paths, tmp_path):
    wide = torch.zeros(32, 33, 1, 2, 2)
    path = changed(paths["transformer"], tmp_path, {"rope_axes": [4, 6, 6]}, **{"img_in.proj.weight": wide})
    with pytest.raises(UnsupportedFile, match="no text-to-video transformer"):
        check_files(Files(**{**paths, "transformer": path}))


def test_an_unknown_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedFile, match="cannot be used as a VAE"):
        check_file("vae", tmp_path / "a.safetensors")


def test_settings_get_names_without_folders(paths):
    assert Files(**paths).names() == {role: f"{role}.safetensors" for role in paths}

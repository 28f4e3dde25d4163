from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyvideo_lib.checkpoint import rewrite
from hyvideo_lib.cli import arguments, convert, main


def test_there_and_back_gives_the_same_numbers(hyvideo, tiny_files):
    there = hyvideo("convert", tiny_files.transformer, "there.safetensors", "--layout", "diffusers")
    assert (there.code, there.report["path"]) == (0, "there.safetensors")
    assert there.report["manifest"]["to"]["layout"] == "diffusers"
    assert hyvideo("convert", "there.safetensors", "back.safetensors", "--layout", "tencent").code == 0
    old, new = load_file(tiny_files.transformer), load_file("back.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name].float(), new[name].float()) for name in old)
    assert not Path("back.manifest.json").exists()


def test_people_get_a_manifest_beside_the_file(hyvideo, tiny_files, capsys):
    words = ["convert", str(tiny_files.vae), "new.safetensors", "--layout", "comfyui", "--storage", "float16"]
    assert main(words) == 0
    assert "new.manifest.json" in capsys.readouterr().out
    manifest = json.loads(Path("new.manifest.json").read_text())
    assert manifest["from"]["kind"] == "vae"
    assert {entry["name"] for entry in manifest["tensors"]} == load_file("new.safetensors").keys()


def test_what_exists_is_replaced_only_by_force(hyvideo, tiny_files):
    Path("new.safetensors").write_text("mine")
    answer = hyvideo("convert", tiny_files.vae, "new.safetensors")
    assert (answer.code, answer.error) == (2, "output_exists")
    assert Path("new.safetensors").read_text() == "mine"
    assert hyvideo("convert", tiny_files.vae, "new.safetensors", "--force").code == 0


def test_an_older_manifest_stays_too(hyvideo, tiny_files):
    Path("new.manifest.json").write_text("mine")
    assert main(["convert", str(tiny_files.vae), "new.safetensors"]) == 2
    assert Path("new.manifest.json").read_text() == "mine"
    assert not Path("new.safetensors").exists()


def test_a_file_is_not_written_over_itself(hyvideo, tiny_files):
    before = tiny_files.vae.read_bytes()
    Path("link.safetensors").symlink_to(tiny_files.vae)
    for target in (tiny_files.vae, "link.safetensors"):
        answer = hyvideo("convert", tiny_files.vae, target, "--storage", "float16", "--force")
        assert (answer.code, answer.error) == (2, "invalid_setting")
        assert "which is read" in answer.message
    assert tiny_files.vae.read_bytes() == before


def test_a_wrong_suffix_is_told_before_an_older_manifest(hyvideo, tiny_files, capsys):
    Path("new.manifest.json").write_text("mine")
    assert main(["convert", str(tiny_files.vae), "new.bin"]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--layout", "flux"], "invalid_setting"),
        (["--storage", "int4"], "invalid_setting"),
        (["--component", "transformer"], "wrong_kind"),
    ],
)
def test_wrong_options_are_refused(hyvideo, tiny_files, words, code):
    answer = hyvideo("convert", tiny_files.vae, "new.safetensors", *words)
    assert (answer.code, answer.error) == (2, code)
    assert not Path("new.safetensors").exists()


def test_a_hostile_pickle_is_refused(hyvideo):
    class RunsCode:
        def __reduce__(self):
            return os.system, ("touch ran",)

    torch.save(RunsCode(), "old.pt")
    answer = hyvideo("convert", "old.pt", "new.safetensors")
    assert (answer.code, answer.error) == (2, "unsupported_file")
    assert os.listdir() == ["old.pt"]


def test_the_lists_are_the_librarys():
    assert (convert.LAYOUTS, convert.COMPONENTS) == (rewrite.LAYOUTS, rewrite.COMPONENTS)
    assert arguments.STORAGE_DTYPES == rewrite.STORAGES

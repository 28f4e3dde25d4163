"""--lora of `generate` and `demo`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import GOLDENS

from hyvideo_lib.cli.options import lora_options
from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.lora import LowRank, write_lora

WIDTH = 32
"""Of the tiny model."""


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA for one block of the tiny model."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "style.safetensors"
    down, up = torch.randn(2, WIDTH, generator=generator), torch.randn(7 * WIDTH, 2, generator=generator)
    write_lora(path, {"single_blocks.0.linear1": LowRank(down, up)}, "diffusers", WIDTH)
    return path


@pytest.mark.parametrize(
    ("text", "path", "strength", "blocks"),
    [
        ("a.safetensors", "a.safetensors", 1.0, ""),
        ("a.safetensors:0.5", "a.safetensors", 0.5, ""),
        ("a.safetensors:-2:double 0-9, single", "a.safetensors", -2.0, "double 0-9, single"),
        ("a.safetensors::single", "a.safetensors", 1.0, "single"),
        (r"C:\loras\a.SAFETENSORS:0.5", r"C:\loras\a.SAFETENSORS", 0.5, ""),
        ("b.safetensors/a.safetensors:1", "b.safetensors/a.safetensors", 1.0, ""),
        ("a.sft:0.5", "a.sft", 0.5, ""),
        ("a", "a", 1.0, ""),
        ("folder/a:0.5:single", "folder/a", 0.5, "single"),
        (r"C:\loras\a", r"C:\loras\a", 1.0, ""),
        ("C:/loras/a:0.5", "C:/loras/a", 0.5, ""),
        ("mine", "named.safetensors", 1.0, ""),
        ("mine:0.25", "named.safetensors", 0.25, ""),
    ],
)
def test_the_option_is_a_file_a_strength_and_blocks(text: str, path: str, strength: float, blocks: str) -> None:
    (choice,) = lora_options(Namespace(lora=[text]), {"mine": Path("named.safetensors")})
    assert (choice.path, choice.strength, choice.blocks) == (Path(path), strength, blocks)


@pytest.mark.parametrize("text", ["", ":1", "a:1:2:3", "a.safetensors:1:2:3", "a.safetensors:much"])
def test_what_is_no_such_option_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting):
        lora_options(Namespace(lora=[text]), {"mine": Path("named.safetensors")})


@pytest.mark.parametrize("name", ["odd:1", "odd:1:single", "folder:2"])
def test_what_lies_on_the_disk_says_where_the_path_ends(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for ending, strength, blocks in (("", 1.0, ""), (":0.5", 0.5, ""), ("::single", 1.0, "single")):
        (choice,) = lora_options(Namespace(lora=[f"{tmp_path / name}{ending}"]))
        assert (choice.path, choice.strength, choice.blocks) == (tmp_path / name, strength, blocks)


@pytest.mark.parametrize("name", ["style.sft", "style", "folder", "adapter"])
def test_contents_decide_whatever_the_path_is_called(generate, lora: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "given" / name
    file = {"folder": path / "any.safetensors", "adapter": path / "adapter_model.safetensors"}.get(name, path)
    file.parent.mkdir(parents=True)
    file.write_bytes(lora.read_bytes())
    answer = generate("a red circle", "--lora", f"{path}:0.5:single", "--out", tmp_path / "x.mp4")
    assert answer.code == 0, answer.stderr
    (coverage,) = answer.report["loras"]
    assert (coverage["file"], coverage["matched"]) == (file.name, 8)
    (video,) = answer.report["videos"]
    assert video["settings"]["loras"] == [{"file": name, "strength": 0.5, "blocks": "single"}]


def test_a_pickle_and_a_missing_path_are_refused(generate, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    for name, code in (("a.pt", "unsupported_file"), ("b.pt", "file_missing"), ("style", "file_missing")):
        answer = generate("a red circle", "--lora", f"{tmp_path / name}:0.5")
        assert (answer.code, answer.error) == (2, code)


def test_a_lora_changes_the_video_and_is_reported(generate, lora: Path, tmp_path: Path) -> None:
    latents, texts = {}, {}
    for name, words in (
        ("none", []),
        ("off", ["--lora", f"{lora}:0"]),
        ("elsewhere", ["--lora", f"{lora}:1:double"]),
        ("on", ["--lora", lora]),
        ("twice", ["--lora", f"{lora}:0.5", "--lora", f"{lora}:0.5:single 0"]),
    ):
        kept = tmp_path / f"{name}.safetensors"
        answer = generate("a red circle", *words, "--out", tmp_path / f"{name}.mp4", "--save-latents", kept)
        assert answer.code == 0, answer.stderr
        latents[name], texts[name] = load_file(kept)["latents"], answer
    assert torch.equal(latents["off"], latents["none"])
    assert torch.equal(latents["elsewhere"], latents["none"])
    assert not torch.equal(latents["on"], latents["none"])
    assert torch.allclose(latents["twice"], latents["on"], atol=1e-5)
    (coverage,) = texts["on"].report["loras"]
    assert (coverage["matched"], coverage["unmatched"], coverage["single_blocks"]) == (8, [], [0])
    assert "rank 2" in texts["on"].stderr
    idle = {
        name: warning["message"]
        for name, answer in texts.items()
        for warning in answer.report["warnings"]
        if warning["code"] == "lora_idle"
    }
    assert idle.keys() == {"off", "elsewhere"}
    assert "has no effect: its strength is 0" in idle["off"]
    assert "nothing in the blocks that were chosen. It changes single 0" in idle["elsewhere"]
    assert all(f"Warning: {message}" in texts[name].stderr for name, message in idle.items())
    assert "loras" not in texts["none"].report
    (video,) = texts["twice"].report["videos"]
    assert video["settings"]["loras"] == [
        {"file": lora.name, "strength": 0.5, "blocks": ""},
        {"file": lora.name, "strength": 0.5, "blocks": "single 0"},
    ]


def test_tensors_that_belong_nowhere_are_a_warning(generate, lora: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    save_file({**load_file(lora), "text_encoder.layers.0.lora_A.weight": torch.zeros(2, 2)}, path)
    answer = generate("a red circle", "--lora", path, "--out", tmp_path / "x.mp4")
    assert answer.code == 0
    (warning,) = answer.report["warnings"]
    assert warning["code"] == "lora_unmatched"
    assert "1 of 9 tensors" in warning["message"]
    assert "text_encoder.layers.0.lora_A.weight" in answer.stderr


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        (":11", "invalid_setting", "strength is 11"),
        (":nan", "invalid_setting", "strength is nan"),
        (":1:blocks", "invalid_setting", "choice of blocks"),
        (":1:single 7", "invalid_setting", "names single block 7"),
        (".safetensors", "file_missing", "style.safetensors.safetensors"),
    ],
)
def test_a_lora_that_cannot_be_used_is_refused_before_anything_is_loaded(
    generate, lora: Path, ending: str, code: str, words: str
) -> None:
    answer = generate("a red circle", "--lora", f"{lora}{ending}")
    assert (answer.code, answer.error) == (2, code)
    assert words in answer.message
    assert "load" not in answer.stderr.lower()


def test_a_lora_for_another_model_is_refused(generate) -> None:
    answer = generate("a red circle", "--lora", GOLDENS / "lora_tiny.kohya.safetensors")
    assert (answer.code, answer.error) == (2, "unsupported_file")
    assert "does not fit this transformer" in answer.message

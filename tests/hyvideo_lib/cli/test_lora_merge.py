from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyvideo_lib.lora import LowRank, write_lora

WIDTH = 32
"""Of the tiny model."""


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA for two blocks of the tiny model."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "style.safetensors"
    names = ("single_blocks.0.linear1", "double_blocks.0.img_attn_qkv")
    layers = {
        name: LowRank(
            torch.randn(2, WIDTH, generator=generator), torch.randn(parts * WIDTH, 2, generator=generator) * 0.2
        )
        for name, parts in zip(names, (7, 3), strict=True)
    }
    write_lora(path, layers, "diffusers", WIDTH)
    return path


def test_a_merged_copy_makes_the_video_that_the_lora_makes(hyvideo, generate, tiny_files, lora: Path) -> None:
    answer = hyvideo("lora-merge", tiny_files.transformer, lora, "merged.safetensors", "--strength", 0.5)
    assert (answer.code, answer.report["changed"], answer.report["coverage"]["layers"]) == (0, 2, 2)
    assert answer.report["loras"] == [{"file": lora.name, "strength": 0.5}]
    latents = {}
    for name, words in (
        ("plain", []),
        ("lora", ["--lora", f"{lora}:0.5"]),
        ("merged", ["--transformer", "merged.safetensors"]),
    ):
        made = generate("a red circle", *words, "--out", f"{name}.mp4", "--save-latents", f"{name}_latents.safetensors")
        assert made.code == 0, made.stderr
        latents[name] = load_file(f"{name}_latents.safetensors")["latents"]
    effect, rounding = (
        (latents["merged"] - latents[other]).abs().max().item() / latents["merged"].abs().max().item()
        for other in ("plain", "lora")
    )
    assert rounding <= 1e-5  # the tiny file holds float32
    assert effect >= 1e-2


def test_a_folder_of_peft_s_is_merged(hyvideo, tiny_files, lora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(lora.read_bytes())
    answer = hyvideo("lora-merge", tiny_files.transformer, folder, "merged.safetensors")
    assert (answer.code, answer.report["changed"], answer.report["loras"][0]["file"]) == (0, 2, "adapter")
    answer = hyvideo("lora-merge", tiny_files.transformer, folder, folder / "adapter_model.safetensors", "--force")
    assert (answer.code, answer.error) == (2, "invalid_setting")


def test_neither_of_the_two_files_is_written_over(hyvideo, tiny_files, lora: Path) -> None:
    before = lora.read_bytes()
    for target in (tiny_files.transformer, lora):
        answer = hyvideo("lora-merge", tiny_files.transformer, lora, target, "--force")
        assert (answer.code, answer.error) == (2, "invalid_setting")
        assert "which is read" in answer.message
    assert lora.read_bytes() == before


def test_a_strength_of_0_is_no_copy(hyvideo, tiny_files, lora: Path) -> None:
    answer = hyvideo("lora-merge", tiny_files.transformer, lora, "merged.safetensors", "--strength", 0)
    assert (answer.code, answer.error) == (2, "invalid_setting")
    assert "has no effect: its strength is 0" in answer.message
    assert not Path("merged.safetensors").exists()


def test_only_the_chosen_blocks_change(hyvideo, tiny_files, lora: Path) -> None:
    answer = hyvideo("lora-merge", tiny_files.transformer, lora, "merged.safetensors", "--blocks", "single")
    assert answer.report["changed"] == 1
    before, after = load_file(tiny_files.transformer), load_file("merged.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["single_blocks.0.linear1.weight"]


def test_tensors_that_belong_nowhere_are_a_warning(hyvideo, tiny_files, lora: Path) -> None:
    save_file({**load_file(lora), "text_encoder.layers.0.lora_A.weight": torch.zeros(2, 2)}, "more.safetensors")
    answer = hyvideo("lora-merge", tiny_files.transformer, "more.safetensors", "merged.safetensors")
    (warning,) = answer.report["warnings"]
    assert (answer.code, warning["code"]) == (0, "lora_unmatched")
    assert "text_encoder.layers.0.lora_A.weight" in answer.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--strength", "11"], "invalid_setting"),
        (["--strength", "much"], "invalid_setting"),
        (["--blocks", "single 9"], "invalid_setting"),
        (["--blocks", "blocks"], "invalid_setting"),
    ],
)
def test_wrong_options_are_refused(hyvideo, tiny_files, lora: Path, words: list[str], code: str) -> None:
    answer = hyvideo("lora-merge", tiny_files.transformer, lora, "merged.safetensors", *words)
    assert (answer.code, answer.error) == (2, code)
    assert not Path("merged.safetensors").exists()


def test_what_exists_is_replaced_only_by_force(hyvideo, tiny_files, lora: Path) -> None:
    Path("merged.safetensors").write_text("mine")
    answer = hyvideo("lora-merge", tiny_files.transformer, lora, "merged.safetensors")
    assert (answer.code, answer.error) == (2, "output_exists")
    assert Path("merged.safetensors").read_text() == "mine"
    assert hyvideo("lora-merge", tiny_files.transformer, lora, "merged.safetensors", "--force").code == 0


def test_files_given_the_wrong_way_round_are_refused(hyvideo, tiny_files, lora: Path) -> None:
    answer = hyvideo("lora-merge", lora, tiny_files.transformer, "merged.safetensors")
    assert (answer.code, answer.error) == (2, "wrong_kind")
    assert "cannot be merged into style.safetensors" in answer.message

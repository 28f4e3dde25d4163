from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hyvideo_lib.cli import main

ROLES = {"transformer": "transformer", "vae": "vae", "llm": "llama", "clip": "clip"}


def test_each_model_file_is_told(hyvideo, tiny_files):
    answer = hyvideo("inspect", *vars(tiny_files).values())
    assert answer.code == 0
    for (role, path), entry in zip(vars(tiny_files).items(), answer.report["files"], strict=True):
        assert (entry["path"], entry["kind"], entry["supported"]) == (str(path), ROLES[role], True)
    assert answer.report["files"][0]["config"]["rope_axes"] == [4, 6, 6]


def test_a_bad_file_does_not_hide_the_others(hyvideo, tiny_files):
    Path("text.safetensors").write_text("hello there")
    answer = hyvideo("inspect", "nowhere", tiny_files.vae, "text.safetensors", ".")
    assert (answer.code, answer.error) == (2, "file_missing")
    codes = [entry.get("error", {}).get("code") for entry in answer.report["files"]]
    assert codes == ["file_missing", None, "file_unreadable", "file_unreadable"]


def test_people_read_what_it_is_and_its_sizes(tiny_files, capsys):
    assert main(["inspect", str(tiny_files.transformer), str(tiny_files.vae)]) == 0
    text = capsys.readouterr().out
    assert "a transformer (diffusion model); can be used" in text
    assert "a VAE; can be used" in text
    assert "num_double_blocks" in text
    assert "t2v" in text


def test_a_video_tells_its_settings(generate, capsys):
    generate("a red circle", "--out", "a.mp4")
    assert main(["inspect", "a.mp4"]) == 0
    text = capsys.readouterr().out
    assert "made by hyvideo" in text
    for word in ("a red circle", "seed", "7", "euler"):
        assert word in text


def test_a_truncated_video_is_told(generate, hyvideo):
    generate("a red circle", "--out", "a.mp4")
    data = Path("a.mp4").read_bytes()
    Path("short.mp4").write_bytes(data[:-100])
    Path("head.mp4").write_bytes(data[:20])
    for name in ("short.mp4", "head.mp4"):
        answer = hyvideo("inspect", name)
        assert (answer.code, answer.error) == (2, "file_truncated"), name


def test_what_is_only_called_a_video_is_told(hyvideo):
    Path("none.mp4").write_bytes(b"x")
    answer = hyvideo("inspect", "none.mp4")
    assert (answer.code, answer.error) == (2, "file_unreadable")


def peft_folder(config: dict[str, object], name: str = "adapter_model.safetensors") -> Path:
    """A folder as PEFT writes it, with a LoRA of rank 2."""
    folder = Path("adapter")
    folder.mkdir(exist_ok=True)
    module = "base_model.model.double_blocks.0.img_attn_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(2, 32), f"{module}.lora_B.weight": torch.ones(32, 2)}
    save_file(tensors, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_peft_s_is_told_with_the_place_of_its_alpha(hyvideo):
    folder = peft_folder({"peft_type": "LORA", "r": 2, "lora_alpha": 8})
    (folder / "optimizer.safetensors").touch()
    (entry,) = hyvideo("inspect", folder).report["files"]
    assert (entry["kind"], entry["supported"]) == ("lora", True)
    assert entry["alpha_sources"] == ["adapter_config.json beside it"]
    assert any("folder of PEFT" in note for note in entry["notes"])


def test_a_lora_that_its_configuration_rules_out_cannot_be_used(hyvideo):
    folder = peft_folder({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "init_lora_weights": "pissa"})
    (entry,) = hyvideo("inspect", folder / "adapter_model.safetensors").report["files"]
    assert (entry["kind"], entry["supported"]) == ("lora", False)
    assert "pissa" in entry["reason"]


def test_a_folder_with_a_pickled_adapter_is_told_what_to_do(hyvideo):
    folder = peft_folder({"r": 2})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    answer = hyvideo("inspect", folder)
    assert (answer.code, answer.error) == (2, "unsupported_file")

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyvideo_lib.errors import FileMissing, UnsupportedFile
from hyvideo_lib.lora.files import find_lora


def lora(path: Path) -> Path:
    name = "transformer.double_blocks.0.img_attn_proj"
    save_file({f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}, path)
    return path


def test_a_file_is_itself_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.sft", "a", "missing"):
        assert find_lora(tmp_path / name) == tmp_path / name


def test_a_name_that_no_file_can_have_is_left_to_the_reader() -> None:
    assert find_lora("a\0b") == Path("a\0b")


def test_peft_s_own_file_is_taken_whatever_lies_beside_it(tmp_path: Path) -> None:
    lora(tmp_path / "other.safetensors")
    path = lora(tmp_path / "adapter_model.safetensors")
    assert find_lora(tmp_path) == path


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "style.sft"])
def test_the_only_weights_of_a_folder_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "README.md").touch()
    assert find_lora(lora(tmp_path / name).parent) == tmp_path / name


def test_the_only_lora_among_other_weights_is_taken(tmp_path: Path) -> None:
    save_file({"optimizer.state": torch.ones(2)}, tmp_path / "optimizer.safetensors")
    (tmp_path / "broken.safetensors").write_text("no")
    assert find_lora(lora(tmp_path / "style.safetensors").parent) == tmp_path / "style.safetensors"


def test_several_loras_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.sft"):
        lora(tmp_path / name)
    with pytest.raises(UnsupportedFile, match=r"a\.safetensors, b\.sft"):
        find_lora(tmp_path)


def test_a_pickle_is_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(UnsupportedFile, match="hyvideo convert adapter_model"):
        find_lora(tmp_path)


def test_a_folder_without_weights_holds_no_lora(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="no LoRA"):
        find_lora(tmp_path)

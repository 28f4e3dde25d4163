"""A LoRA's matrices held to HunyuanVideo's layers, though the transformer that it will meet is not known yet."""

from __future__ import annotations

import re
from pathlib import Path

import checkpoint_headers as headers
import pytest
from checkpoint_headers import Entries

from hyvideo_lib.checkpoint import FileReport, inspect_file

NAME = "diffusion_model.double_blocks.0.img_attn_qkv"


def pair(name: str = NAME, rows: int = 9216, columns: int = 3072, rank: int = 8, dtype: str = "bfloat16") -> Entries:
    return {f"{name}.lora_A.weight": ([rank, columns], dtype), f"{name}.lora_B.weight": ([rows, rank], dtype)}


def report_of(folder: Path, entries: Entries) -> FileReport:
    return inspect_file(headers.write_safetensors(folder / "lora.safetensors", entries))


SOUND: dict[str, Entries] = {
    "a pair": pair(),
    "alpha": {**pair(), f"{NAME}.alpha": ([], "float32")},
    "alpha as a vector of one": {**pair(), f"{NAME}.alpha": ([1], "int64")},
    "convolution": pair("diffusion_model.img_in.proj", 3072, 64),
    "convolution with its kernel": {
        "diffusion_model.img_in.proj.lora_A.weight": ([8, 33, 1, 2, 2], "bfloat16"),
        "diffusion_model.img_in.proj.lora_B.weight": ([3072, 8, 1, 1, 1], "bfloat16"),
    },
    "other ranks": pair() | pair("diffusion_model.single_blocks.0.linear2", 3072, 15360, 3),
    "text": pair("diffusion_model.txt_in.input_embedder", 3072, 4096),
    "a difference": {f"{NAME}.diff": ([9216, 3072], "float16"), f"{NAME}.diff_b": ([9216], "float16")},
    "parts of a layer": pair("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072)
    | pair("transformer.single_transformer_blocks.0.proj_mlp", 12288, 3072),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_fits_the_released_transformer_is_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, SOUND[name])
    assert report.supported, report.reason


WRONG: dict[str, tuple[Entries, str]] = {
    "rows": (pair(rows=9215), r"9215 x 8, but double_blocks.0.img_attn_qkv needs 9216 x 8"),
    "rank": (
        {f"{NAME}.lora_A.weight": ([8, 3072], "float16"), f"{NAME}.lora_B.weight": ([9216, 4], "float16")},
        "needs 9216 x 8",
    ),
    "half": ({f"{NAME}.lora_A.weight": ([8, 3072], "float16")}, "the down matrix of .* but not its up matrix"),
    "the other half": (
        {f"{NAME}.lora_B.weight": ([9216, 8], "float16")},
        "the up matrix of .* but not its down matrix",
    ),
    "dtype": (pair(dtype="int8"), "as int8, but a LoRA holds floating-point numbers"),
    "empty": (pair(rank=0), "needs 0 x 3072"),
    "alpha": ({**pair(), f"{NAME}.alpha": ([2], "float32")}, "needs one number"),
    "difference": (
        {f"{NAME}.diff": ([9216, 3071], "float16")},
        "needs 9216 x 3072",
    ),
    "text": (pair() | pair("diffusion_model.txt_in.input_embedder", 3072, 4097), "needs 8 x 4096"),
    "two widths": (
        pair()
        | pair("diffusion_model.double_blocks.1.img_attn_proj", 96, 96)
        | pair("diffusion_model.single_blocks.0.linear1", 21504, 3072),
        "double_blocks.1.img_attn_proj needs",
    ),
    "twice": (pair() | pair("lora_unet_double_blocks_0_img_attn_qkv"), "changes double_blocks.0.img_attn_qkv twice"),
    "twice under two ends": (
        pair() | {f"{NAME}.lora_down.weight": ([8, 3072], "float16"), f"{NAME}.lora_up.weight": ([9216, 8], "float16")},
        "which are the same thing",
    ),
    "two layouts": (
        pair("transformer.single_blocks.0.linear1", 21504, 3072)
        | pair("transformer.single_transformer_blocks.0.attn.to_k", 3072, 3072),
        "changes single_blocks.0.linear1 twice",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_fits_no_transformer_is_refused_by_what_is_wrong(name: str, tmp_path: Path) -> None:
    entries, words = WRONG[name]
    report = report_of(tmp_path, entries)
    assert (report.kind, report.supported) == ("lora", False)
    assert re.search(words, report.reason), report.reason


def test_a_lora_of_another_width_is_told(tmp_path: Path) -> None:
    """The demo's transformer, and tests', are narrower."""
    report = report_of(tmp_path, pair(rows=576, columns=192))
    assert report.supported
    assert report.notes == ("It is for a transformer 192 wide; the released one is 3072 wide.",)

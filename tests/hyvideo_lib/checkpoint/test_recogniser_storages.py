"""Storages that are not read are told by name, by recogniser and loaders alike, in every spelling of the field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoint_headers as headers
import pytest
from checkpoint_headers import Entries, is_block_matrix, released

from hyvideo_lib.checkpoint import inspect_file, load_text_encoder, load_transformer
from hyvideo_lib.errors import UnsupportedFile

E4M3, E8M0 = "float8_e4m3fn", "float8_e8m0fnu"
Layer = Callable[[int, int], Entries]  # (out, in) -> the tensors of a layer by the ends of their names
ONE: tuple[list[int], str] = ([], "float32")


def up(size: int, block: int) -> int:
    return -(-size // block)


def kitchen(format_name: str, layer: Layer) -> Layer:
    """The same with ComfyUI's description beside it."""
    return lambda o, i: {**layer(o, i), f"comfy_quant {format_name}": ([90], "uint8")}


def fp8_blocks(scale: str, block: int = 128, dtype: str = "float32") -> Layer:
    return lambda o, i: {"weight": ([o, i], E4M3), scale: ([up(o, block), up(i, block)], dtype)}


def grid(weight: str, scale: str, numbers: int, packed: int = 1, end: str = "weight") -> Layer:
    """A scale for so many numbers of a row; `packed` numbers in a byte of the weight."""
    return lambda o, i: {end: ([o, i // packed], weight), "weight_scale": ([o, up(i, numbers)], scale)}


def more(layer: Layer, **tensors: tuple[list[int], str]) -> Layer:
    return lambda o, i: {**layer(o, i), **tensors}


STORAGES: dict[str, tuple[str, Layer]] = {
    "DeepSeek's": ("fp8 blockwise", fp8_blocks("weight_scale_inv")),
    "DeepSeek's in bf16": ("fp8 blockwise", fp8_blocks("weight_scale_inv", dtype="bfloat16")),
    "weight_scale in blocks": ("fp8 blockwise", fp8_blocks("weight_scale")),
    "weight_scale in blocks of 64": (
        "fp8 blockwise",
        kitchen("float8_e4m3fn_blockwise", fp8_blocks("weight_scale", 64)),
    ),
    "scale_weight in blocks": ("fp8 blockwise", fp8_blocks("scale_weight")),
    "fp8 in groups": ("fp8 blockwise", grid(E4M3, "float32", 64)),
    "int8 in blocks": ("int8 blockwise", grid("int8", "float32", 128)),
    "int8 in blocks, described": ("int8 blockwise", kitchen("int8_blockwise", grid("int8", "float32", 128))),
    "nvfp4 of ComfyUI": ("nvfp4", kitchen("nvfp4", more(grid("uint8", E4M3, 16, 2), weight_scale_2=ONE))),
    "nvfp4 of ModelOpt": ("nvfp4", more(grid("uint8", E4M3, 16, 2), weight_scale_2=ONE, input_scale=ONE)),
    "nvfp4 of compressed-tensors": (
        "nvfp4",
        more(grid("uint8", E4M3, 16, 2, "weight_packed"), weight_global_scale=([1], "float32")),
    ),
    "nvfp4 of LightX2V": ("nvfp4", more(grid("uint8", E4M3, 16, 2), weight_global_scale=([1], "float32"), alpha=ONE)),
    "nvfp4 by its scales": ("nvfp4", grid("uint8", E4M3, 16, 2)),
    "nvfp4 by scales as bytes": ("nvfp4", grid("uint8", "uint8", 16, 2)),
    "mxfp8": ("mxfp8", grid(E4M3, E8M0, 32)),
    "mxfp8 by bytes": ("mxfp8", grid(E4M3, "uint8", 32)),
    "mxfp8 of ComfyUI": ("mxfp8", kitchen("mxfp8", grid(E4M3, "uint8", 32))),
    "mxfp8 with a second scale": ("mxfp8", kitchen("hybrid_mxfp8", grid(E4M3, E8M0, 32))),
    "mxfp4": ("mxfp4", grid("uint8", E8M0, 32, 2)),
    "w4a4": ("w4a4", kitchen("convrot_w4a4", grid("int8", "float32", 10**6, 2))),
    "w4a8": (
        "w4a8",
        lambda o, i: {
            "weight": ([o, i // 2], "int8"),
            "weight_s_rel": ([o, i // 16], E4M3),
            "weight_s_channel": ([o], "float32"),
            "weight_codebook": ([16], "float32"),
        },
    ),
    "w4a8, described": (
        "w4a8",
        kitchen(
            "asym_w4a8_int8", lambda o, i: {"weight": ([o, i // 2], "int8"), "weight_s_rel": ([o, i // 16], "uint8")}
        ),
    ),
    "Nunchaku's": (
        "SVDQuant",
        lambda o, i: {
            "qweight": ([o, i // 2], "int8"),
            "wscales": ([i // 64, o], "bfloat16"),
            "smooth_factor": ([i], "bfloat16"),
            "proj_down": ([i, 32], "bfloat16"),
            "proj_up": ([o, 32], "bfloat16"),
        },
    ),
    "SVDQuant of ComfyUI": (
        "SVDQuant",
        lambda o, i: {
            "weight": ([o, i // 2], "int8"),
            "weight_scale": ([i // 64, o], "bfloat16"),
            "weight_proj_down": ([i, 32], "bfloat16"),
            "weight_proj_up": ([o, 32], "bfloat16"),
            "weight_smooth_factor": ([i], "bfloat16"),
        },
    ),
    "int4 of compressed-tensors": (
        "int4",
        lambda o, i: {
            "weight_packed": ([o, i // 8], "int32"),
            "weight_scale": ([o, i // 128], "bfloat16"),
            "weight_shape": ([2], "int64"),
        },
    ),
    "int4 in groups": ("int4", grid("uint8", "float32", 64, 2)),
    "int4 without a word": ("two numbers in a byte", grid("uint8", "float32", 10**6, 2)),
    "int4 as int8": ("two numbers in a byte", lambda o, i: {"weight": ([o, i // 2], "int8")}),
    "6 bits": ("two numbers in a byte", lambda o, i: {"weight": ([o, i * 3 // 4], "int8")}),
    "bitsandbytes": (
        "bitsandbytes",
        lambda o, i: {"weight": ([o * i // 2, 1], "uint8"), "weight.absmax": ([o * i // 64], "float32")},
    ),
    "GPTQ": (
        "GPTQ",
        lambda o, i: {
            "qweight": ([i // 8, o], "int32"),
            "qzeros": ([i // 128, o // 8], "int32"),
            "scales": ([i // 128, o], "float16"),
            "g_idx": ([i], "int32"),
        },
    ),
    "HQQ": ("HQQ", lambda o, i: {"W_q": ([o, i // 2], "uint8"), "scale": ([o, i // 64], "float16")}),
    "SDNQ": (
        "SDNQ",
        lambda o, i: {
            "weight": ([o, i], "uint8"),
            "scale": ([o, 1], "float32"),
            "zero_point": ([o, 1], "float32"),
        },
    ),
    "Quanto": ("Quanto", lambda o, i: {"weight._data": ([o, i], "int8"), "weight._scale": ([o, 1], "float32")}),
}


def stored(entries: Entries, layer: Layer) -> tuple[Entries, dict[str, str]]:
    """The entries with the blocks' matrices stored so, and what the file says of each description."""
    found: Entries = {}
    formats: dict[str, str] = {}
    for name, (shape, dtype) in entries.items():
        if not is_block_matrix(name, shape):
            found[name] = (shape, dtype)
            continue
        for end, entry in layer(*shape).items():
            leaf, _, said = end.partition(" ")
            found[name.removesuffix("weight") + leaf] = entry
            if said:
                formats[name.removesuffix("weight") + leaf] = said
    return found, formats


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "release", ["tencent_transformer_t2v", "comfy_transformer_t2v", "diffusers_transformer_t2v", "llama_hf"]
)
def test_what_is_not_read_is_named(tmp_path: Path, release: str, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, layer = STORAGES[storage]
    entries, formats = stored(released(release), layer)
    monkeypatch.setattr(headers, "FORMATS", dict.fromkeys(("int8", "uint8", E4M3), next(iter(formats.values()), "")))
    path = headers.write_safetensors(tmp_path / "model.safetensors", entries)
    report = inspect_file(path)
    assert not report.supported
    assert report.reason.startswith(("Weights", "Its weights"))
    assert words in report.reason
    assert "not supported" in report.reason
    assert "Use a bf16, fp16, fp8 or GGUF file" in report.reason
    load = load_text_encoder if release == "llama_hf" else load_transformer
    with pytest.raises(UnsupportedFile, match=words):
        load(path)


@pytest.mark.parametrize("shape", [[], [1], [1, 1], [3072], [3072, 1]])
def test_scales_that_are_read_are_no_blocks(tmp_path: Path, shape: list[int]) -> None:
    entries = {name: (size, dtype) for name, (size, dtype) in released("tencent_transformer_t2v").items()}
    name = "double_blocks.0.img_attn_proj"
    entries |= {f"{name}.weight": ([3072, 3072], E4M3), f"{name}.weight_scale": (shape, "float32")}
    report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", entries))
    assert (report.supported, report.quantization) == (True, "comfyui_quant")

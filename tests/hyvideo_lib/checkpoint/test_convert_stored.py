"""Files of quantised weights become files that hold the same numbers: GGUF, and ComfyUI's two ways of storing fp8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_file import entry, write_gguf
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.rewrite import LAYOUTS, Request
from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.quant import dequantize_fp8, plain_fp8_state_dict, quantize_fp8
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS

Weights = dict[str, Tensor]
GOLDENS = Path(__file__).parents[2] / "goldens"
BLOCK_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("q8_0", "q4_0", "iq4_nl", "iq4_xs")}


def weights_of_a_transformer() -> Weights:
    """One whose sizes its names and shapes tell, as GGUF has no metadata of ours."""
    return load_file(GOLDENS / "dit_headdim128_t2v.weights.safetensors")


def is_quantised(name: str, tensor: Tensor) -> bool:
    return name.startswith(("double_blocks", "single_blocks")) and tensor.ndim == 2


def same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].float(), tensor.float()), name


def converted(source: Path, **request: Any) -> Weights:
    target = source.with_name("new.safetensors")
    convert_file(source, target, Request(**request), overwrite=True)
    return load_file(target)


def random_blocks(count: int, num_bytes: int) -> np.ndarray:
    """Blocks that begin with a scale of 0.001 in float16 and hold anything else."""
    raw = np.random.default_rng(0).integers(0, 256, (count, num_bytes), dtype=np.uint8)
    raw[:, :2] = np.array([0.001], np.float16).view(np.uint8)
    return raw


def as_blocks(weights: Weights, kind: str) -> tuple[Weights, Weights]:
    """(rows of blocks of the blocks' matrices, the numbers that they stand for), both by the gguf package."""
    blocks, numbers = {}, {}
    for name, tensor in weights.items():
        numbers_in_block, num_bytes = gguf.GGML_QUANT_SIZES[BLOCK_TYPES[kind]]
        if is_quantised(name, tensor) and tensor.shape[1] % numbers_in_block == 0:
            if kind.startswith("iq"):  # which the package only reads
                raw = random_blocks(tensor.numel() // numbers_in_block, num_bytes).reshape(len(tensor), -1)
            else:
                raw = gguf.quants.quantize(tensor.float().numpy(), BLOCK_TYPES[kind])
            blocks[name] = torch.from_numpy(raw)
            numbers[name] = torch.from_numpy(gguf.quants.dequantize(raw, BLOCK_TYPES[kind]))
    return blocks, numbers


def write_blocks(path: Path, weights: Weights, kind: str, layout: str) -> tuple[Path, Weights]:
    """A GGUF file in a layout's names, and the numbers that it holds, in Tencent's."""
    blocks, numbers = as_blocks(weights, kind)
    assert blocks
    names = {name: next(iter(TRANSFORMER_LAYOUTS[layout]({name: tensor}))) for name, tensor in weights.items()}
    entries = {
        names[name]: entry(blocks[name], kind, tensor.shape[1]) if name in blocks else entry(tensor.float())
        for name, tensor in weights.items()
    }
    return write_gguf(path, entries, {"general.architecture": "hyvid"}), weights | numbers


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", ["tencent", "comfyui"])
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_gguf_becomes_safetensors_of_the_numbers_that_it_stands_for(
    tmp_path: Path, kind: str, source: str, target: str
) -> None:
    path, numbers = write_blocks(tmp_path / "old.gguf", weights_of_a_transformer(), kind, source)
    found = converted(path, layout=target, storage="float32")
    same(found, TRANSFORMER_LAYOUTS[target]({name: tensor.float() for name, tensor in numbers.items()}))


def test_gguf_becomes_fp8_where_plain_fp8_files_have_it(tmp_path: Path) -> None:
    path, numbers = write_blocks(tmp_path / "old.gguf", weights_of_a_transformer(), "q8_0", "tencent")
    expected = plain_fp8_state_dict({name: tensor.float() for name, tensor in numbers.items()})
    for name, tensor in expected.items():  # what has lost its precision in blocks already is not kept in 32 bits
        if is_quantised(name, tensor) and tensor.dtype == torch.float32:
            expected[name] = tensor.bfloat16()
    same(converted(path, storage="float8_e4m3fn"), expected)


def test_ggufs_blocks_cannot_be_kept(tmp_path: Path) -> None:
    path, _ = write_blocks(tmp_path / "old.gguf", weights_of_a_transformer(), "q8_0", "tencent")
    with pytest.raises(UnsupportedFile, match=r"in GGUF's blocks.*--storage float32"):
        converted(path)
    with pytest.raises(UnsupportedFile, match="restores in transformers only"):
        converted(path, component="any", storage="bfloat16")
    assert [file.name for file in tmp_path.iterdir()] == ["old.gguf"]


# ComfyUI's fp8, older and newer


def scaled(weights: Weights) -> tuple[Weights, dict[str, Tensor]]:
    """(the weights with those of the blocks in fp8, the scales by the names of their layers)."""
    pairs = {name: quantize_fp8(tensor) for name, tensor in weights.items() if is_quantised(name, tensor)}
    stored = {name: weight for name, (weight, _) in pairs.items()}
    return weights | stored, {name.removesuffix(".weight"): scale for name, (_, scale) in pairs.items()}


def with_scale_weight(scales: dict[str, Tensor]) -> Weights:
    companions = {f"{layer}.scale_weight": scale for layer, scale in scales.items()}
    return companions | {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}


def with_comfy_quant(scales: dict[str, Tensor]) -> Weights:
    text = torch.frombuffer(bytearray(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    companions = {f"{layer}.weight_scale": scale for layer, scale in scales.items()}
    return companions | {f"{layer}.comfy_quant": text.clone() for layer in scales}


SCHEMES: dict[str, Callable[[dict[str, Tensor]], Weights]] = {
    "scale_weight": with_scale_weight,
    "comfy_quant": with_comfy_quant,
}


@pytest.fixture(params=SCHEMES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Weights, dict[str, Tensor]]:
    """(a file in ComfyUI's names, the weights in Tencent's that it is made of, their scales)."""
    weights, scales = scaled(weights_of_a_transformer())
    companions = SCHEMES[request.param](scales)
    named = TRANSFORMER_LAYOUTS["comfyui"](weights)
    names = {name: next(iter(TRANSFORMER_LAYOUTS["comfyui"]({name: tensor}))) for name, tensor in weights.items()}
    for name, tensor in companions.items():
        layer, _, leaf = name.rpartition(".")
        named[f"{names[f'{layer}.weight'].removesuffix('weight')}{leaf}" if layer else name] = tensor
    path = tmp_path / "old.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, path)
    return path, weights, scales


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_scaled_fp8_becomes_the_numbers_that_it_stands_for(
    stored: tuple[Path, Weights, dict[str, Tensor]], layout: str, storage: str
) -> None:
    path, weights, scales = stored
    dtype = getattr(torch, storage)
    expected = {
        name: dequantize_fp8(tensor, scales[name.removesuffix(".weight")], dtype)
        if name.removesuffix(".weight") in scales
        else tensor.to(dtype if tensor.ndim > 1 else tensor.dtype)
        for name, tensor in weights.items()
    }
    same(converted(path, layout=layout, storage=storage), TRANSFORMER_LAYOUTS[layout](expected))


def test_scaled_fp8_is_kept_with_all_that_belongs_to_it(stored: tuple[Path, Weights, dict[str, Tensor]]) -> None:
    path, _, _ = stored
    same(converted(path), load_file(path))


def test_the_parts_of_a_split_weight_get_its_scale_each(stored: tuple[Path, Weights, dict[str, Tensor]]) -> None:
    path, weights, scales = stored
    found = converted(path, layout="diffusers")
    layer = "double_blocks.0.img_attn_qkv"
    for part, rows in zip("qkv", weights[f"{layer}.weight"].float().chunk(3), strict=True):
        name = f"transformer_blocks.0.attn.to_{part}"
        assert torch.equal(found[f"{name}.weight"].float(), rows)
        [scale] = [tensor for key, tensor in found.items() if key in (f"{name}.scale_weight", f"{name}.weight_scale")]
        assert torch.equal(scale.reshape(1), scales[layer].reshape(1))
    assert (f"{name}.comfy_quant" in found) == any(key.endswith("comfy_quant") for key in load_file(path))

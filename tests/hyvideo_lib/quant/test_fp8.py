from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hyvideo_lib.quant import (
    FP8_DTYPES,
    cast_fp8,
    dequantize_fp8,
    is_kept_in_plain_fp8,
    plain_fp8_state_dict,
    quantize_fp8,
)

GOLDENS = Path(__file__).parents[2] / "goldens"
MANTISSA_BITS = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "fp8_linear.safetensors")


def test_quantizing_equals_tencents(golden: dict[str, torch.Tensor]) -> None:
    weight, scale = quantize_fp8(golden["weight_orig"])
    assert torch.equal(scale, golden["fp8_scale"])
    assert torch.equal(weight.float(), golden["weight_fp8"].float())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_fp8_linear_equals_the_golden(golden: dict[str, torch.Tensor], dtype: torch.dtype, tolerance: float) -> None:
    name = str(dtype).removeprefix("torch.")
    weight = dequantize_fp8(golden["weight_fp8"], golden["fp8_scale"], dtype)
    assert torch.equal(weight, golden[f"dequant_{name}"])
    y = F.linear(golden["x"].to(dtype), weight, golden["bias"].to(dtype))
    torch.testing.assert_close(y, golden[f"y_{name}"], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", FP8_DTYPES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(exponent=st.integers(-20, 20), seed=st.integers(0, 1000))
def test_quantizing_keeps_every_large_weight_within_half_a_step(dtype: torch.dtype, exponent: int, seed: int) -> None:
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    quantized, scale = quantize_fp8(weight, dtype)
    back = dequantize_fp8(quantized, scale, torch.float32)
    large = weight.abs() > weight.abs().max() / 100  # the rest may be subnormal
    half_step = 2.0 ** -(MANTISSA_BITS[dtype] + 1)
    assert ((back - weight).abs() / weight.abs())[large].max() <= half_step * 1.001
    assert quantized.float().abs().max() == torch.finfo(dtype).max


@pytest.mark.parametrize("scale", [torch.tensor(0.25), torch.tensor([0.25])])
def test_scale_may_be_a_scalar_or_one_element(scale: torch.Tensor) -> None:
    weight = torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn)
    assert torch.equal(dequantize_fp8(weight, scale, torch.float32), torch.tensor([[0.25, -0.5]]))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float32])
def test_the_stored_weight_is_never_written_to(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, -2.0]]).to(dtype)
    dequantize_fp8(weight, torch.tensor(0.25), torch.float32)
    assert weight.float().tolist() == [[1.0, -2.0]]


def test_no_scale_is_scale_one() -> None:
    weight = torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn)
    assert torch.equal(dequantize_fp8(weight, None, torch.bfloat16), weight.bfloat16())


@pytest.mark.parametrize("peak", [0.0, 1e-45, 1e-38])
def test_zeros_and_tiny_weights_stay_finite(peak: float) -> None:
    weight, scale = quantize_fp8(torch.full((4, 4), peak))
    back = dequantize_fp8(weight, scale, torch.float32)
    assert torch.allclose(back, torch.full((4, 4), peak), atol=1e-38)
    assert scale > 0


@pytest.mark.parametrize("dtype", FP8_DTYPES)
def test_plain_cast_rounds_and_saturates(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    found = cast_fp8(torch.tensor([1.0, 1.01, 1e9, -1e9, 0.0]), dtype).float()
    assert found.tolist() == [1.0, 1.0, largest, -largest, 0.0]


def test_plain_rule_is_that_of_the_files_in_the_wild() -> None:
    layout = json.loads((GOLDENS / "layouts" / "kijai_transformer_t2v_fp8_e4m3fn.json").read_text())
    for name, (_, dtype) in layout["entries"].items():
        assert is_kept_in_plain_fp8(name) == (dtype != "float8_e4m3fn"), name


def test_plain_state_dict_casts_large_weights_only() -> None:
    tensors = {
        "double_blocks.0.img_mlp.fc1.weight": torch.randn(4, 4).bfloat16(),
        "double_blocks.0.img_mlp.fc1.bias": torch.randn(4).bfloat16(),
        "txt_in.input_embedder.weight": torch.randn(4, 4),
    }
    found = plain_fp8_state_dict(tensors)
    assert found["double_blocks.0.img_mlp.fc1.weight"].dtype == torch.float8_e4m3fn
    assert found["double_blocks.0.img_mlp.fc1.bias"] is tensors["double_blocks.0.img_mlp.fc1.bias"]
    assert found["txt_in.input_embedder.weight"] is tensors["txt_in.input_embedder.weight"]

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyvideo_lib.quant import dequantize_fp8, dequantize_ggml, quantize_fp8
from hyvideo_lib.quant.ggml import GGML_FORMATS
from hyvideo_lib.quant.linear import BlockLinear, ScaledLinear
from hyvideo_lib.quant.rotation import rotate
from hyvideo_lib.transformer.ops import Linear

ROWS = [slice(None), slice(0, 3), slice(3, None)]


def loaded(layer: Linear, **tensors: torch.Tensor | None) -> Linear:
    layer.requires_grad_(False).load_state_dict(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, strict=True, assign=True
    )
    return layer


def blocks(ggml_type: str, out_features: int, in_features: int) -> torch.Tensor:
    """Rows of random blocks without NaN or infinity."""
    raw = torch.randint(0, 256, (out_features, GGML_FORMATS[ggml_type].row_bytes(in_features)), dtype=torch.uint8)
    while (bad := ~dequantize_ggml(raw, ggml_type).isfinite().all(dim=1)).any():
        raw[bad] = torch.randint(0, 256, (int(bad.sum()), raw.shape[1]), dtype=torch.uint8)
    return raw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_scaled_fp8_equals_dequantise_then_compute(dtype: torch.dtype, rows: slice, has_bias: bool) -> None:
    weight, scale = quantize_fp8(torch.randn(8, 6))
    bias = torch.randn(8).bfloat16() if has_bias else None
    layer = loaded(ScaledLinear(6, 8, has_bias), weight=weight, weight_scale=scale, bias=bias)
    x = torch.randn(2, 5, 6).to(dtype)
    whole = dequantize_fp8(weight, scale, dtype)[rows]
    assert torch.equal(layer(x, rows), F.linear(x, whole, None if bias is None else bias[rows].to(dtype)))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_each_row_may_have_its_own_scale(rows: slice, kind: torch.dtype) -> None:
    numbers = torch.randint(-100, 100, (8, 6)).to(kind)
    scale = torch.rand(8, 1)
    layer = loaded(ScaledLinear(6, 8, False, num_scales=8), weight=numbers, weight_scale=scale)
    assert torch.equal(layer.dense_weight(torch.float32, rows), (numbers.float() * scale)[rows])


def test_int8_is_rounded_once() -> None:
    numbers, scale = torch.randint(-127, 128, (64, 64), dtype=torch.int8), torch.tensor([0.001234567])
    layer = loaded(ScaledLinear(64, 64, False), weight=numbers, weight_scale=scale)
    assert torch.equal(layer.dense_weight(torch.bfloat16), (numbers.float() * scale).bfloat16())


def rotated(in_features: int, out_features: int, group: int) -> ScaledLinear:
    layer = ScaledLinear(in_features, out_features, num_scales=out_features)
    layer.rotation = group
    numbers = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
    loaded(layer, weight=numbers, weight_scale=torch.rand(out_features, 1), bias=torch.randn(out_features))
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
def test_rotated_rows_are_turned_back_before_they_are_multiplied(dtype: torch.dtype, rows: slice) -> None:
    layer = rotated(32, 8, 16)
    turned = rotate(layer.weight.float() * layer.weight_scale, 16).to(dtype)
    x = torch.randn(2, 5, 32).to(dtype)
    assert torch.equal(layer(x, rows), F.linear(x, turned[rows], layer.bias[rows].to(dtype)))


@pytest.mark.parametrize("ggml_type", GGML_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
def test_blocks_equal_dequantise_then_compute(ggml_type: str, dtype: torch.dtype, rows: slice) -> None:
    weight, bias = blocks(ggml_type, 8, 256), torch.randn(8)
    layer = loaded(BlockLinear(256, 8, True, ggml_type), weight=weight, bias=bias)
    x = torch.randn(2, 5, 256).to(dtype)
    expected = F.linear(x, dequantize_ggml(weight, ggml_type, dtype)[rows], bias[rows].to(dtype))
    assert torch.equal(layer(x, rows), expected)
    assert layer.weight.dtype == torch.uint8


STORED: dict[str, Any] = {
    "fp8": lambda: loaded(
        ScaledLinear(32, 4),
        weight=torch.randn(4, 32).to(torch.float8_e4m3fn),
        weight_scale=torch.rand(1),
        bias=torch.ones(4),
    ),
    "int8": lambda: loaded(
        ScaledLinear(32, 4, num_scales=4),
        weight=torch.randint(-9, 9, (4, 32), dtype=torch.int8),
        weight_scale=torch.rand(4, 1),
        bias=torch.ones(4),
    ),
    "rotated": lambda: rotated(32, 4, 16),
    "blocks": lambda: loaded(BlockLinear(32, 4), weight=blocks("q8_0", 4, 32), bias=torch.ones(4)),
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.float, lambda m: m.to(torch.float64)])
def test_casting_the_model_loses_neither_numbers_nor_scales(kind: str, cast: Any) -> None:
    layer = STORED[kind]()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    expected = layer.dense_weight(torch.float32)
    cast(nn.Sequential(layer, Linear(4, 4)))
    assert {name: tensor.dtype for name, tensor in layer.state_dict().items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert torch.equal(layer.dense_weight(torch.float32), expected)


@pytest.mark.parametrize("kind", STORED)
def test_layers_still_move_between_devices(kind: str) -> None:
    layer = STORED[kind]().to("meta")
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}

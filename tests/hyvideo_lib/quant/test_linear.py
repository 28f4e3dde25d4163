from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyvideo_lib.quant import dequantize_fp8, quantize_fp8
from hyvideo_lib.quant.linear import ScaledFp8Linear, use_scales
from hyvideo_lib.transformer.ops import Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [slice(None), slice(0, 3), slice(3, None)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_equals_dequantise_then_compute(dtype: torch.dtype, rows: slice, has_bias: bool) -> None:
    layer = ScaledFp8Linear(6, 8, has_bias).requires_grad_(False)
    weight, scale = quantize_fp8(torch.randn(8, 6))
    bias = {"bias": torch.randn(8).bfloat16()} if has_bias else {}
    layer.load_state_dict({"weight": weight, "fp8_scale": scale, **bias}, strict=True, assign=True)
    x = torch.randn(2, 5, 6).to(dtype)
    whole = dequantize_fp8(weight, scale, dtype)[rows]
    expected = F.linear(x, whole, layer.bias[rows].to(dtype) if has_bias else None)
    assert torch.equal(layer(x, rows), expected)


def test_named_linears_get_a_scale_and_others_stay() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Linear(2, 3), nn.Sequential(Linear(3, 4, bias=False)))
    use_scales(model, ["1.0"])
    assert type(model[0]) is Linear
    assert model.state_dict().keys() == {"0.weight", "0.bias", "1.0.weight", "1.0.fp8_scale"}
    assert model[1][0].weight.shape == (4, 3)
    assert not model[1][0].weight.requires_grad


def test_only_linears_have_scales() -> None:
    with pytest.raises(TypeError, match="not a Linear"):
        use_scales(nn.Sequential(nn.ReLU()), ["0"])

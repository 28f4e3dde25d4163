from __future__ import annotations

import pytest
import torch

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.quant import cast_fp8, probe_fp8_matmul, quantize_fp8
from hyvideo_lib.quant.fp8_matmul import Fp8MatmulLinear, multiply_fp8
from hyvideo_lib.quant.linear import ScaledLinear


def can_multiply() -> bool:
    try:
        probe_fp8_matmul("cpu", torch.float32)
    except InvalidSetting:
        return False
    return True


needs_fp8 = pytest.mark.skipif(not can_multiply(), reason="this PyTorch multiplies no fp8 on the CPU")


def layers(in_features: int = 32, out_features: int = 48) -> tuple[Fp8MatmulLinear, ScaledLinear]:
    """The same weights in both layers."""
    weight, scale = quantize_fp8(torch.randn(out_features, in_features))
    state = {"weight": weight, "weight_scale": scale, "bias": torch.randn(out_features)}
    fast = Fp8MatmulLinear(in_features, out_features).requires_grad_(False)
    fast.load_state_dict({**state, "input_scale": torch.tensor([0.25])}, strict=True, assign=True)
    plain = ScaledLinear(in_features, out_features).requires_grad_(False)
    plain.load_state_dict(state, strict=True, assign=True)
    return fast, plain


@needs_fp8
@pytest.mark.parametrize("rows", [slice(None), slice(16, 48)])
def test_product_is_that_of_the_rounded_activations(rows: slice) -> None:
    fast, plain = layers()
    x = torch.randn(2, 5, 32)
    rounded = cast_fp8(x / 0.25).float() * 0.25
    torch.testing.assert_close(fast(x, rows), plain(rounded, rows), atol=1e-4, rtol=1e-5)
    assert not torch.equal(fast(x, rows), plain(x, rows))


@needs_fp8
def test_activations_beyond_the_format_are_cut_off() -> None:
    weight, one = cast_fp8(torch.eye(16)), torch.ones(1)
    x = torch.full((1, 16), 1e6)
    assert torch.equal(multiply_fp8(x, weight, one, one), torch.full((1, 16), 448.0))


@needs_fp8
def test_what_is_added_to_the_output_is_added_here_too() -> None:
    fast, _ = layers()
    x = torch.randn(3, 32)
    before = fast(x, slice(0, 16))
    fast.adapters = (lambda x, rows: torch.full((x.shape[0], 48), 2.0)[:, rows],)
    assert torch.equal(fast(x, slice(0, 16)), before + 2.0)


def test_widths_that_the_kernels_do_not_take_compute_as_defined() -> None:
    fast, plain = layers(24, 40)
    x = torch.randn(3, 24)
    assert torch.equal(fast(x), plain(x))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_cannot_is_refused_with_its_reason() -> None:
    with pytest.raises(InvalidSetting, match=r"not possible on cuda: .*8\.9 or more.*Switch them off"):
        probe_fp8_matmul("cuda")


def test_a_wrong_product_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "_scaled_mm", lambda a, b, **_: torch.zeros(a.shape[0], b.shape[1], dtype=torch.bfloat16)
    )
    with pytest.raises(InvalidSetting, match="its product is wrong"):
        probe_fp8_matmul("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_multiplies_or_says_why_not() -> None:
    try:
        probe_fp8_matmul("cuda")
    except InvalidSetting:
        assert torch.cuda.get_device_capability() < (8, 9)

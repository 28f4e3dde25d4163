"""Products in fp8 itself (`torch._scaled_mm`), for devices that have them: faster, and less exact than the definition.

The activations are rounded to fp8 too: divided by the file's input scale where it has one, and cut off at the format's
largest number. That is what files made for it expect. It is an option, and `probe_fp8_matmul` tries it on the device
at hand before a model is loaded for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidSetting
from .fp8 import cast_fp8
from .linear import ScaledLinear

MULTIPLE = 16
"""Both sides of the weight must be multiples of it; other layers compute in the compute dtype."""


class Fp8MatmulLinear(ScaledLinear):
    """A ScaledLinear that multiplies in fp8: activations in e4m3, the weight in the fp8 it is stored in.

    weight_scale, input_scale: [1] float32.
    """

    input_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("input_scale", torch.ones(1))

    def ready_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor | None:
        return super().ready_weight(dtype, rows) if self._is_odd(rows) else None

    def _is_odd(self, rows: slice) -> bool:
        """Whether these rows cannot be multiplied in fp8."""
        return any(size % MULTIPLE for size in self.weight[rows].shape)

    def forward(self, x: Tensor, rows: slice = slice(None), ready: Tensor | None = None) -> Tensor:
        if self._is_odd(rows):
            return super().forward(x, rows, ready)
        weight = self.weight[rows]
        y = multiply_fp8(x, weight, self.weight_scale, self.input_scale)
        if self.bias is not None:
            y = y + self.bias[rows].to(x.dtype)
        for adapter in self.adapters:
            y = y + adapter(x, rows)
        return y


def multiply_fp8(x: Tensor, weight: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    """x [..., in] times weight [out, in] transposed, both multiplied in fp8: [..., out] in x's dtype.

    weight: fp8; the scales: one float32 each, on x's device.
    """
    quantized = cast_fp8(x.reshape(-1, x.shape[-1]).float() / input_scale)
    y = torch._scaled_mm(
        quantized,
        weight.t(),
        scale_a=input_scale.reshape(()),
        scale_b=weight_scale.reshape(()),
        out_dtype=x.dtype,
    )
    return y.view(*x.shape[:-1], weight.shape[0])


def probe_fp8_matmul(device: str | torch.device, compute_dtype: torch.dtype = torch.bfloat16) -> None:
    """Multiply in fp8 on the device once, and see that the product is right.

    Raises InvalidSetting with the device's own reason if it cannot.
    """
    device = torch.device(device)
    try:
        x = torch.eye(2 * MULTIPLE, dtype=compute_dtype, device=device)
        weight = cast_fp8(torch.arange(-512.0, 512.0, device=device).view(2 * MULTIPLE, 2 * MULTIPLE) / 256)
        one = torch.ones(1, device=device)
        found = multiply_fp8(x, weight, one * 2, one)
        reason = "" if torch.equal(found, 2 * weight.to(compute_dtype).t()) else "its product is wrong"
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:  # each torch has its own
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    if reason:
        raise InvalidSetting(
            f"fp8 matrix products are not possible on {device}: {reason}. They need an NVIDIA card of compute "
            "capability 8.9 or more (RTX 40 series, H100) and PyTorch 2.5 or newer. Switch them off: the weights stay "
            "in 8 bits, and only the products are formed in the compute dtype."
        )

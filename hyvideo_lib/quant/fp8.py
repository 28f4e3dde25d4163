"""Weights in 8-bit floating point: scaled as Tencent's files have them, plainly cast as Kijai's have them.

fp8 here is storage only: a weight is brought back to the compute dtype before it is multiplied, and that product is the
definition of what an fp8 model computes. Scaled, `W = w * scale` with `scale = max|W| / 448`, so the whole range of the
format is used; plain, scale is 1. Everything that is small or delicate (norms, biases, embedders) stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)

# Parts of a tensor's name that keep it out of plain fp8. Kijai's rule, which files in the wild follow.
KEPT_IN_PLAIN_FP8 = ("norm", "bias", "time_in", "vector_in", "guidance_in", "txt_in", "img_in")


def quantize_fp8(weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """(weight in fp8, scale [1] float32), Tencent's way: the largest magnitude lands on the format's largest number.

    The scale is never zero, so a weight of zeros stays one.
    """
    weight = weight.float()
    scale = (weight.abs().amax() / torch.finfo(dtype).max).clamp(min=torch.finfo(torch.float32).tiny).reshape(1)
    return cast_fp8(weight / scale, dtype), scale


def dequantize_fp8(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight that an fp8 layer multiplies with, in `dtype`. scale: one number, [] or [1]; None is plain fp8.

    The scale is rounded to `dtype` first, as the reference does it.
    """
    dense = weight.to(dtype)
    if scale is None:
        return dense
    return dense * scale.to(dtype) if dense is weight else dense.mul_(scale.to(dtype))  # no second copy of a layer


def dequantize_scaled(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight that a layer of fp8 or int8 numbers multiplies with, in `dtype`.

    scale: [] or [1], or [out, 1] with one for each row. fp8 is defined in `dtype`, as above. int8 is defined in
    float32 and rounded once: a scale in 16 bits would cost more than the numbers' own precision.
    """
    if weight.dtype in FP8_DTYPES:
        return dequantize_fp8(weight, scale, dtype)
    return (weight.float() * scale.float()).to(dtype)


def cast_fp8(weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Nearest fp8 number, without scale. Beyond the format's range it saturates; a bare cast gives NaN or
    infinity there, depending on PyTorch's version."""
    largest = torch.finfo(dtype).max
    if weight.dtype in FP8_DTYPES:  # which PyTorch cannot clamp
        weight = weight.float()
    return weight.clamp(-largest, largest).to(dtype)


def is_kept_in_plain_fp8(name: str) -> bool:
    """Whether the tensor of this (Tencent) name stays in 16 or 32 bits in a plainly cast file."""
    return any(part in name for part in KEPT_IN_PLAIN_FP8)


def plain_fp8_state_dict(
    state_dict: Mapping[str, Tensor], dtype: torch.dtype = torch.float8_e4m3fn
) -> dict[str, Tensor]:
    """A transformer's state dict with its large weights cast to fp8; the kept tensors are the same objects."""
    return {
        name: tensor if is_kept_in_plain_fp8(name) else cast_fp8(tensor, dtype) for name, tensor in state_dict.items()
    }

"""The layer whose fp8 weight has a scale: dequantised when it is used, kept in 8 bits when it is not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..transformer.ops import Linear
from .fp8 import dequantize_fp8


class ScaledFp8Linear(Linear):
    """A Linear that multiplies with weight * fp8_scale. `rows` computes only those output features.

    Its state dict has one entry more, `fp8_scale` [1] float32, as files in Tencent's fp8 carry it beside the weight.
    """

    fp8_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("fp8_scale", torch.ones(1))

    def dense_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        return dequantize_fp8(self.weight[rows], self.fp8_scale, dtype)


def use_scales(model: nn.Module, layers: Iterable[str]) -> None:
    """Replace the named Linears of a model on the meta device by ones that have a scale. Their weights are lost."""
    for name in layers:
        parent, _, leaf = name.rpartition(".")
        old = model.get_submodule(name)
        if not isinstance(old, Linear):
            raise TypeError(f"{name} is a {type(old).__name__}, not a Linear; only those have scales.")
        with torch.device("meta"):
            new = ScaledFp8Linear(old.in_features, old.out_features, old.bias is not None)
        setattr(model.get_submodule(parent), leaf, new.requires_grad_(False))

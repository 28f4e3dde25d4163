"""Layers whose weight rests in another form than it is multiplied in: dequantised when used, never before.

What they compute is defined as dequantise-then-compute. Their storage is what the file holds; a change of the model's
dtype leaves it alone, since the numbers mean nothing without their scales.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..transformer.ops import Linear
from .fp8 import dequantize_scaled
from .ggml import GGML_FORMATS, dequantize_ggml
from .rotation import dequantize_rotated


class StoredLinear(Linear):
    """A Linear whose tensors move between devices but keep their dtype, whatever the model is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredLinear:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


class ScaledLinear(StoredLinear):
    """A Linear that multiplies with weight * weight_scale. `rows` computes only those output features.

    The weight is fp8 or int8. weight_scale: float32, [1], or [out_features, 1] with one for each row. input_scale: [1]
    float32, what products in fp8 divide tokens by, or None. full_precision: the file asks for no products in 8 bits.
    rotation: the size of the groups that each row of the weight was rotated in, 0 for none.
    """

    weight_scale: Tensor
    input_scale: Tensor | None
    full_precision = False
    rotation = 0

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, num_scales: int = 1, has_input_scale: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("weight_scale", torch.ones((1,) if num_scales == 1 else (num_scales, 1)))
        self.register_buffer("input_scale", torch.ones(1) if has_input_scale else None)

    def dense_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        scale = self.weight_scale if self.weight_scale.numel() == 1 else self.weight_scale[rows]
        if self.rotation:
            return dequantize_rotated(self.weight[rows], scale, self.rotation, dtype)
        return dequantize_scaled(self.weight[rows], scale, dtype)


class BlockLinear(StoredLinear):
    """A Linear whose weight is rows of ggml blocks, [out_features, bytes of a row] uint8. `rows` as above."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, ggml_type: str = "q8_0") -> None:
        super().__init__(in_features, out_features, bias)
        self.ggml_type = ggml_type
        shape = (out_features, GGML_FORMATS[ggml_type].row_bytes(in_features))
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.uint8, device=self.weight.device), False)

    def dense_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        return dequantize_ggml(self.weight[rows], self.ggml_type, dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ggml_type={self.ggml_type}"

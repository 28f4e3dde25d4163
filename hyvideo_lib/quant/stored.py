"""Weights as files keep them: numbers and what they are multiplied with, or blocks of bytes.

Each kind knows the dense weight that it stands for, which is the definition of what its layer computes, and the layer
that keeps it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..transformer.ops import Linear
from .fp8 import dequantize_scaled
from .ggml import GGML_FORMATS, dequantize_ggml
from .linear import BlockLinear, ScaledLinear
from .rotation import dequantize_rotated


class StoredWeight(Protocol):
    """One weight in its storage form."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight itself, in `dtype`."""

    def make_layer(self, in_features: int, out_features: int, has_bias: bool) -> Linear:
        """A layer, on the device that is the default, that takes `entries`."""

    def entries(self) -> dict[str, Tensor]:
        """The layer's state but its bias, by the last words of the names."""


@dataclass(frozen=True)
class ScaledWeight:
    """fp8 or int8 numbers, with one scale or one for each row.

    scale: [1] or [out, 1]. input_scale: [1], what activations are divided by where they are multiplied in fp8.
    full_precision: the file asks for no products in 8 bits with this weight. rotation: the size of the groups that each
    row was rotated in (`rotation`), 0 for none.
    """

    weight: Tensor
    scale: Tensor
    input_scale: Tensor | None = None
    full_precision: bool = False
    rotation: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def dense(self, dtype: torch.dtype) -> Tensor:
        if self.rotation:
            return dequantize_rotated(self.weight, self.scale, self.rotation, dtype)
        return dequantize_scaled(self.weight, self.scale, dtype)

    def make_layer(self, in_features: int, out_features: int, has_bias: bool) -> Linear:
        made = ScaledLinear(in_features, out_features, has_bias, self.scale.numel(), self.input_scale is not None)
        made.full_precision, made.rotation = self.full_precision, self.rotation
        return made

    def entries(self) -> dict[str, Tensor]:
        found = {"weight": self.weight, "weight_scale": self.scale}
        return found if self.input_scale is None else {**found, "input_scale": self.input_scale}


@dataclass(frozen=True)
class BlockWeight:
    """Rows of ggml blocks. data: [out, bytes of a row] uint8; ggml_type: a name in GGML_FORMATS."""

    data: Tensor
    ggml_type: str

    @property
    def shape(self) -> tuple[int, ...]:
        block = GGML_FORMATS[self.ggml_type]
        return (*self.data.shape[:-1], self.data.shape[-1] // block.num_bytes * block.numbers)

    def dense(self, dtype: torch.dtype) -> Tensor:
        return dequantize_ggml(self.data, self.ggml_type, dtype)

    def make_layer(self, in_features: int, out_features: int, has_bias: bool) -> Linear:
        return BlockLinear(in_features, out_features, has_bias, self.ggml_type)

    def entries(self) -> dict[str, Tensor]:
        return {"weight": self.data}

"""Layers with weights, which may rest in another dtype than they compute in.

The transformer takes its layers from a namespace like this module, so that a host can supply its own. These cast the
weight to the input's dtype when it is used: 8-bit storage computes in 16 or 32 bit, and equals dequantise-then-compute
by definition. A weight already in the right dtype is used as it lies, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ops(Protocol):
    """What a namespace of layers offers. Its Linear takes `rows`, a slice of the output features, as ours does."""

    @property
    def Linear(self) -> type[Linear]: ...  # noqa: N802

    @property
    def Conv3d(self) -> type[nn.Conv3d]: ...  # noqa: N802


Adapter = Callable[[Tensor, slice], Tensor]
"""What a LoRA adds to a layer: of the layer's input and the wanted output features, a term of the output's shape."""


class Product(Protocol):
    """How the tokens and the weight of a Linear are multiplied."""

    def ready(self, layer: Linear, dtype: torch.dtype, rows: slice) -> Any:
        """What the weight's rows are multiplied as, by tokens in `dtype`; made once for many calls of `multiply`."""

    def multiply(self, x: Tensor, ready: Any, bias: Tensor | None) -> Tensor:
        """x [..., in] times what `ready` gave, plus the bias in x's dtype: [..., out] in x's dtype."""


class Dense:
    """In the tokens' dtype, which is the definition."""

    def ready(self, layer: Linear, dtype: torch.dtype, rows: slice) -> Tensor:
        return layer.dense_weight(dtype, rows)

    def multiply(self, x: Tensor, ready: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, ready, bias)


DENSE = Dense()


class Linear(nn.Linear):
    """nn.Linear whose weight is cast on use. `rows` computes only those output features.

    product: how it is multiplied. adapters: their terms are added to the output in order; the weight itself is never
    changed.
    """

    product: Product = DENSE
    adapters: tuple[Adapter, ...] = ()

    def dense_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """The weight that is multiplied with, [rows, in_features] in `dtype`. Storage schemes say here what it is."""
        return self.weight[rows].to(dtype)

    def ready_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Any:
        """What `forward` may be given as `ready`, made once for many calls."""
        return self.product.ready(self, dtype, rows)

    def forward(self, x: Tensor, rows: slice = slice(None), ready: Any = None) -> Tensor:
        bias = None if self.bias is None else self.bias[rows].to(x.dtype)
        y = self.product.multiply(x, self.ready_weight(x.dtype, rows) if ready is None else ready, bias)
        for adapter in self.adapters:
            y = y + adapter(x, rows)
        return y


class Conv3d(nn.Conv3d):
    """nn.Conv3d whose weight is cast on use. adapters: as Linear's, of all output channels."""

    adapters: tuple[Adapter, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        y = self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        for adapter in self.adapters:
            y = y + adapter(x, slice(None))
        return y

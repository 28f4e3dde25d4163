"""Layers with weights, which may rest in another dtype than they compute in.

The transformer takes its layers from a namespace like this module, so that a host can supply its own. These cast the
weight to the input's dtype when it is used: 8-bit storage computes in 16 or 32 bit, and equals dequantise-then-compute
by definition. A weight already in the right dtype is used as it lies, without a copy.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
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


class Adapter(Protocol):
    """What a LoRA adds to a layer's output: of its input and the wanted output features, a term of that shape."""

    @property
    def origin(self) -> Hashable:
        """What it was made from: two for the same layer add the same if these are equal. It holds no numbers."""

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have what it multiplies with ready for tokens there and of that dtype. Called before tokens are."""

    def merged(
        self, weight: Tensor, bias: Tensor | None, rows: slice, tokens: int, is_copy: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the wanted rows with the term in them; the weight is overwritten if it is a copy.

        None where the term itself takes less time: so many tokens of each item are multiplied with what this returns.
        """

    def __call__(self, x: Tensor, rows: slice) -> Tensor: ...


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


@dataclass(frozen=True, eq=False)
class ReadyLinear:
    """The wanted rows of a Linear as a function of tokens of one dtype: all that is the same for many calls.

    What the weight is multiplied as lasts as long as this does.
    """

    product: Product
    weight: Any
    bias: Tensor | None
    adapters: tuple[Adapter, ...]
    rows: slice

    def __call__(self, x: Tensor) -> Tensor:
        y = self.product.multiply(x, self.weight, self.bias)
        for adapter in self.adapters:
            y += adapter(x, self.rows)
        return y


class Linear(nn.Linear):
    """nn.Linear whose weight is cast on use. `rows` computes only those output features.

    product: how it is multiplied. adapters: their terms are added to the output in order, or to a copy of the weight in
    the dtype of many tokens; the weight itself is never changed.
    """

    product: Product = DENSE
    adapters: tuple[Adapter, ...] = ()

    def dense_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """The weight that is multiplied with, [rows, in_features] in `dtype`. Storage schemes say here what it is."""
        return self.weight[rows].to(dtype)

    def ready(self, like: Tensor, rows: slice = slice(None)) -> ReadyLinear:
        """What computes these output features of all of `like`, [..., tokens, in], at once or in parts.

        A weight in 8 bits is multiplied as it is, adapters beside it: to round it again would cost what they add.
        """
        weight = self.product.ready(self, like.dtype, rows)
        bias: Tensor | None = None if self.bias is None else self.bias[rows].to(like.dtype)
        beside: list[Adapter] = []
        is_copy = bool(self.adapters) and isinstance(weight, Tensor) and not self._rests_in(weight)
        for adapter in self.adapters:
            adapter.place(like.device, like.dtype)
            tokens = like.shape[-2] if like.ndim > 1 else 1
            merged = adapter.merged(weight, bias, rows, tokens, is_copy) if isinstance(weight, Tensor) else None
            if merged is None:
                beside.append(adapter)
            else:
                (weight, bias), is_copy = merged, True
        return ReadyLinear(self.product, weight, bias, tuple(beside), rows)

    def _rests_in(self, tensor: Tensor) -> bool:
        """Whether what the layer holds lies in the same memory, all or in part."""
        memory = tensor.untyped_storage()._cdata
        return any(own.untyped_storage()._cdata == memory for own in (*self.parameters(), *self.buffers()))

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return self.ready(x, rows)(x)


class Conv3d(nn.Conv3d):
    """nn.Conv3d whose weight is cast on use. adapters: as Linear's, of all output channels."""

    adapters: tuple[Adapter, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        y = self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        for adapter in self.adapters:
            adapter.place(x.device, x.dtype)
            y = y + adapter(x, slice(None))
        return y

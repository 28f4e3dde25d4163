"""Layers with weights, which may rest in another dtype than they compute in.

The transformer takes its layers from a namespace like this module, so that a host can supply its own. These cast the
weight to the input's dtype when it is used: 8-bit storage computes in 16 or 32 bit, and equals dequantise-then-compute
by definition. A weight already in the right dtype is used as it lies, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loan import Loan


class Ops(Protocol):
    """What a namespace of layers offers. Its Linear takes `rows`, a slice of the output features, as ours does."""

    @property
    def Linear(self) -> type[Linear]: ...  # noqa: N802

    @property
    def Conv3d(self) -> type[nn.Conv3d]: ...  # noqa: N802


class Merging(Protocol):
    """The same term in a weight and a bias, of the wanted output features."""

    def added(self, weight: Tensor, rows: slice) -> Tensor:
        """The weight with the term in it, as a new tensor, or the weight if nothing is added to it."""

    def add_(self, weight: Tensor, rows: slice) -> None:
        """Add the term to the weight."""

    def with_bias(self, bias: Tensor | None, rows: slice) -> Tensor | None:
        """The bias with the term in it; the one that is given is left alone."""


class Adapter(Protocol):
    """What LoRAs add to a layer's output."""

    @property
    def reads_weight(self) -> bool:
        """Whether what is added depends on the layer's weight, which must be whole then whenever it is asked."""

    @property
    def origin(self) -> Hashable:
        """What it was made from: two for the same layer add the same if these are equal. It holds no numbers."""

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have what it multiplies with ready for tokens there and of that dtype. Called before tokens are."""

    def merging(self, tokens: int) -> Merging | None:
        """How the term goes into the weight, for so many tokens of each item; None where it takes less time beside."""

    def beside(self, rows: slice) -> Callable[[Tensor], Tensor]:
        """A function of the layer's input: the term of these output features. It lasts while tokens are multiplied."""


class VectorAdapter(Protocol):
    """What LoRAs add to a norm's gain and shift."""

    def place(self, device: torch.device, dtype: torch.dtype) -> None: ...

    def with_weight(self, weight: Tensor) -> Tensor:
        """The gain with the term in it; the one that is given is left alone."""

    def with_bias(self, bias: Tensor) -> Tensor:
        """The shift, likewise."""


class Adaptable(Protocol):
    """A layer that LoRAs can act on: a Linear, a Conv3d or a norm, each with adapters of its kind."""

    adapters: tuple[Any, ...]


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
    terms: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, x: Tensor) -> Tensor:
        y = self.product.multiply(x, self.weight, self.bias)
        for term in self.terms:
            y += term(x)
        return y


class Linear(nn.Linear):
    """nn.Linear whose weight is cast on use. `rows` computes only those output features.

    product: how it is multiplied. adapters: their terms are added to the output in order, or, where tokens are many, to
    a copy of the weight in their dtype. loan: the weight is a copy itself, while this is set, and may be changed.
    """

    product: Product = DENSE
    adapters: tuple[Adapter, ...] = ()
    loan: Loan | None = None

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
        tokens = like.shape[-2] if like.ndim > 1 else 1
        loan = None if any(adapter.reads_weight for adapter in self.adapters) else self.loan
        for adapter in self.adapters:
            adapter.place(like.device, like.dtype)
            merging = self._merging(adapter, tokens, rows, loan) if isinstance(weight, Tensor) else None
            if merging is None:
                beside.append(adapter)
            else:
                weight = self._merge(adapter, merging, weight, rows, loan)
                bias = merging.with_bias(bias, rows)
        return ReadyLinear(self.product, weight, bias, tuple(adapter.beside(rows) for adapter in beside))

    def _merging(self, adapter: Adapter, tokens: int, rows: slice, loan: Loan | None) -> Merging | None:
        if loan is None:
            return adapter.merging(tokens)
        start, stop, _ = rows.indices(self.out_features)
        return loan.merging(adapter, tokens, start, stop)

    def _merge(self, adapter: Adapter, merging: Merging, weight: Tensor, rows: slice, loan: Loan | None) -> Tensor:
        """The weight's rows with the term in them: where they lie if they are a copy or on loan, else in a copy."""
        is_own = self._rests_in(weight)
        if is_own and (loan is None or self.product is not DENSE):  # others make what they multiply from the weight
            return merging.added(weight, rows)
        start, stop, _ = rows.indices(self.out_features)
        for low, high in loan.lacking(adapter, start, stop) if loan else [(start, stop)]:
            merging.add_(weight[low - start : high - start], slice(low, high))
            if loan and is_own:
                loan.note(adapter, merging, low, high)
        return weight

    def _rests_in(self, tensor: Tensor) -> bool:
        """Whether what the layer holds lies in the same memory, all or in part."""
        memory = tensor.untyped_storage()._cdata
        return any(own.untyped_storage()._cdata == memory for own in (*self.parameters(), *self.buffers()))

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return self.ready(x, rows)(x)


class Conv3d(nn.Conv3d):
    """nn.Conv3d whose weight is cast on use. adapters: as Linear's, of all output channels, always beside."""

    adapters: tuple[Adapter, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        y = self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        for adapter in self.adapters:
            adapter.place(x.device, x.dtype)
            y = y + adapter.beside(slice(None))(x)
        return y


class VectorLayer(nn.Module):
    """A norm whose gain, and shift if it has one, LoRAs can act on."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    adapters: tuple[VectorAdapter, ...] = ()

    def gain(self) -> Tensor:
        """[N]: the weight as it is stored, or in float32 with what LoRAs add."""
        weight: Tensor = self.weight
        for adapter in self.adapters:
            weight = adapter.with_weight(weight)
        return weight

    def shift(self) -> Tensor:
        """[N], likewise of the bias."""
        assert self.bias is not None
        bias: Tensor = self.bias
        for adapter in self.adapters:
            bias = adapter.with_bias(bias)
        return bias

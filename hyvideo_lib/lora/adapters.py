"""What LoRAs add to a layer, as its adapters: in its weight for many tokens, beside it for few.

Many tokens are multiplied with (W + s B A), made when the block's weights are on the device, in the dtype of its tokens
and for as long as it computes: of a swapped block in the memory that it came into, of any other, and of a weight stored
in another dtype, in a copy. For few tokens, and beside products in 8 bits, W x + s B (A x) takes less. Either is the
same for weights of every storage, wherever they rest, and what is taken away again leaves no trace.

Methods other than plain LoRA are made row by row when they are needed, and kept as the small tensors that files have.
Those that look at the weight (DoRA, OFT) look at the stored one: no LoRA sees what another one adds.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.lora_layers import LayerSize, adaptable_layers
from ..transformer.ops import Conv3d, Linear
from .change import BaseFn
from .cost import cost_of
from .update import PlacedChange, Weighted, joined_diffs, joined_factors, placed_changes


@dataclass(frozen=True, eq=False)
class LinearTerm:
    """What is added beside a layer's output, of its input: up [N, R] times down [R, in], dense [N, in], bias [N]."""

    down: Tensor | None
    up: Tensor | None
    dense: Tensor | None
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        terms = []
        if self.down is not None and self.up is not None:
            terms.append(self._expand(self._multiply(x, self.down), self.up))
        if self.dense is not None:
            terms.append(self._multiply(x, self.dense))
        if self.bias is not None:
            terms.append(self._spread(self.bias))
        return sum(terms[1:], terms[0])

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer would make of x with this weight [N, in] and no bias."""
        return F.linear(x, weight)

    def _expand(self, x: Tensor, up: Tensor) -> Tensor:
        """up [N, R] times the R features of x."""
        return F.linear(x, up)

    def _spread(self, bias: Tensor) -> Tensor:
        """A bias in a shape that adds to the layer's output."""
        return bias


@dataclass(frozen=True, eq=False)
class ConvTerm(LinearTerm):
    """The same for a convolution, whose weight counts as a matrix over its patches."""

    layer: nn.Conv3d

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        layer = self.layer
        kernel = weight.unflatten(1, (layer.in_channels, *layer.kernel_size))
        return F.conv3d(x, kernel, None, layer.stride, layer.padding, layer.dilation)

    def _expand(self, x: Tensor, up: Tensor) -> Tensor:
        return F.conv3d(x, up[:, :, None, None, None])

    def _spread(self, bias: Tensor) -> Tensor:
        return bias[:, None, None, None]


class LinearAdapter:
    """What all LoRAs of a run add to a Linear: products as one, other changes one after the other.

    base_fn: the stored weight, which the changes of some methods look at. The matrices stay where and as what they were
    placed last, until they are released.
    """

    def __init__(self, size: LayerSize, updates: Sequence[Weighted], base_fn: BaseFn | None = None) -> None:
        self._cost = cost_of(size, updates)
        self._size = size
        self._updates = updates
        self._base_fn = base_fn
        self.origin: Hashable = tuple((ref(update), strength) for update, strength in updates)
        self.reads_weight = any(update.change is not None and update.change.needs_base for update, _ in updates)
        if self.reads_weight and base_fn is None:
            raise TypeError("updates that look at the weight need base_fn")
        self._placed: tuple[torch.device, torch.dtype] | None = None
        self._factors: tuple[Tensor, Tensor] | None = None
        self._diffs: tuple[Tensor | None, ...] = (None, None)
        self._changes: list[PlacedChange] = []
        self._is_prepared = False

    def beside(self, rows: slice) -> LinearTerm:
        weight, bias = self._diffs
        dense = None if weight is None else weight[rows]
        if self._changes:
            start, stop, _ = rows.indices(self._size.out_features)
            dense = self._new_rows(stop - start) if dense is None else dense.clone()
            self._add_changes(dense, start)
        down, up = (self._factors[0], self._factors[1][rows]) if self._factors else (None, None)
        return self._term(LinearTerm(down, up, dense, None if bias is None else bias[rows]))

    def merging(self, tokens: int) -> LinearAdapter | None:
        return self if self._cost.merging_pays(tokens) else None

    def added(self, weight: Tensor, rows: slice) -> Tensor:
        if not self._factors and self._diffs[0] is None and not self._changes:
            return weight
        if self._factors:
            down, up = self._factors
            result = weight.addmm(up[rows], down)
        else:
            result = weight.clone()
        self._add_rest(result, rows)
        return result

    def add_(self, weight: Tensor, rows: slice) -> None:
        if self._factors:
            down, up = self._factors
            weight.addmm_(up[rows], down)
        self._add_rest(weight, rows)

    def with_bias(self, bias: Tensor | None, rows: slice) -> Tensor | None:
        more = self._diffs[1]
        if more is None:
            return bias
        return more[rows] if bias is None else bias + more[rows]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        if self._placed != (device, dtype):
            self._place(device, dtype)

    def _place(self, device: torch.device, dtype: torch.dtype) -> None:
        updates = self._updates
        if device.type == "meta":  # where nothing is joined for
            updates = [(update.to_meta(), strength) for update, strength in updates]
        factors = joined_factors(updates, self._size.out_features, dtype)
        self._factors = (factors[0].to(device), factors[1].to(device)) if factors else None
        diffs = joined_diffs(updates, self._size.out_features, dtype)
        self._diffs = tuple(None if diff is None else diff.to(device) for diff in diffs)
        self._changes = [change.to(device) for change in placed_changes(updates)]
        self._is_prepared = False
        self._placed = device, dtype

    def release(self) -> None:
        """Let go of the matrices."""
        self._placed, self._factors, self._diffs = None, None, (None, None)
        self._changes, self._is_prepared = [], False

    def _add_rest(self, weight: Tensor, rows: slice) -> None:
        """All but the products, in place."""
        if self._diffs[0] is not None:
            weight.add_(self._diffs[0][rows])
        self._add_changes(weight, rows.indices(self._size.out_features)[0])

    def _add_changes(self, weight: Tensor, start: int) -> None:
        base_fn = self._base_fn or _no_base
        if not self._is_prepared:  # not before the weight is where the tokens are
            self._changes = [change.prepared(base_fn) for change in self._changes]
            self._is_prepared = True
        for change in self._changes:
            change.add_to(weight, start, base_fn)

    def _new_rows(self, count: int) -> Tensor:
        assert self._placed is not None
        device, dtype = self._placed
        return torch.zeros(count, self._size.in_features, device=device, dtype=dtype)

    def _term(self, term: LinearTerm) -> LinearTerm:
        """What the layer calls for a term."""
        return term


def _no_base(first: int, last: int) -> Tensor:
    raise TypeError("no change of these looks at the weight")


class Conv3dAdapter(LinearAdapter):
    """The same for a convolution."""

    def __init__(
        self, layer: nn.Conv3d, size: LayerSize, updates: Sequence[Weighted], base_fn: BaseFn | None = None
    ) -> None:
        super().__init__(size, updates, base_fn)
        self._layer = layer

    def _term(self, term: LinearTerm) -> LinearTerm:
        return ConvTerm(term.down, term.up, term.dense, term.bias, self._layer)


class VectorAdapter:
    """What all LoRAs of a run add to a norm's gain and shift: [N] float32 each, or nothing."""

    def __init__(self, size: LayerSize, updates: Sequence[Weighted]) -> None:
        self._size, self._updates = size, updates
        self._placed: torch.device | None = None
        self._sums: tuple[Tensor | None, ...] = (None, None)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        if self._placed != device:
            updates = [(update.to_meta(), s) for update, s in self._updates] if device.type == "meta" else self._updates
            sums = joined_diffs(updates, self._size.out_features, torch.float32)
            self._sums = tuple(None if part is None else part.to(device) for part in sums)
            self._placed = device

    def with_weight(self, weight: Tensor) -> Tensor:
        return self._with(weight, 0)

    def with_bias(self, bias: Tensor) -> Tensor:
        return self._with(bias, 1)

    def release(self) -> None:
        """Let go of the vectors."""
        self._placed, self._sums = None, (None, None)

    def _with(self, vector: Tensor, which: int) -> Tensor:
        self.place(vector.device, vector.dtype)
        more = self._sums[which]
        return vector if more is None else vector.float() + more


def make_adapters(
    model: nn.Module, updates: Mapping[str, Sequence[Weighted]]
) -> dict[str, LinearAdapter | VectorAdapter]:
    """An adapter for each layer that is changed, by its path."""
    adapters: dict[str, LinearAdapter | VectorAdapter] = {}
    sizes = adaptable_layers(model)
    for name, parts in updates.items():
        layer = model.get_submodule(name)
        if name not in sizes:
            raise TypeError(f"{name} is a {type(layer).__name__}, which cannot have a LoRA.")
        if isinstance(layer, Conv3d):
            adapters[name] = Conv3dAdapter(layer, sizes[name], parts, partial(_conv_rows, layer))
        elif isinstance(layer, Linear):
            adapters[name] = LinearAdapter(sizes[name], parts, partial(_linear_rows, layer))
        else:
            adapters[name] = VectorAdapter(sizes[name], parts)
    return adapters


def _linear_rows(layer: Linear, first: int, last: int) -> Tensor:
    """Rows of the stored weight, float32."""
    return layer.dense_weight(torch.float32, slice(first, last))


def _conv_rows(layer: Conv3d, first: int, last: int) -> Tensor:
    return layer.weight[first:last].float().flatten(1)

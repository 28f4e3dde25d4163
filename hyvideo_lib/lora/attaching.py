"""LoRAs on a transformer for the length of a run: added where layers compute, never to their stored weights.

Many tokens are multiplied with (W + s B A), made when the block's weights are on the device, in the dtype of its tokens
and for as long as it computes: of a swapped block in the memory that it came into, of any other, and of a weight stored
in another dtype, in a copy. For few tokens, and beside products in 8 bits, W x + s B (A x) takes less. Either is the
same for weights of every storage, wherever they rest, and what is taken away again leaves no trace.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidSetting
from ..transformer import HunyuanVideoTransformer
from ..transformer.ops import Adapter, Conv3d, Linear
from .blocks import ALL_BLOCKS, BlockChoice
from .cost import Cost, cost_of
from .names import LayerSize, adaptable_layers, layer_sizes
from .read import Lora
from .strength import check_strength
from .update import Weighted, joined_diffs, joined_factors

Adapted = Linear | Conv3d


@dataclass(frozen=True, eq=False)
class LoraUse:
    """A LoRA as it is used: how strongly, and on which blocks. Raises InvalidSetting.

    strength: -10..10; 1 is as trained, 0 is off, below 0 turns the effect round.
    """

    lora: Lora
    strength: float = 1.0
    blocks: BlockChoice = ALL_BLOCKS

    def __post_init__(self) -> None:
        check_strength(self.strength)
        self.blocks.check(self.lora.config.num_double_blocks, self.lora.config.num_single_blocks)

    def describe(self) -> str:
        """The report on the file, and whether it is off; one line for people."""
        return self.lora.coverage.describe() + ("" if self.strength else "; strength 0: adds nothing")


class LinearAdapter:
    """What all LoRAs of a run add to a Linear, as one product. Called as the layer calls its adapters.

    The matrices stay where and as what they were placed last, until they are released.
    """

    def __init__(self, size: LayerSize, updates: Sequence[Weighted]) -> None:
        self._cost = cost_of(size, updates)
        self._out_features = size.out_features
        self._updates = updates
        self.origin: Hashable = tuple((ref(update), strength) for update, strength in updates)
        self._placed: tuple[torch.device, torch.dtype] | None = None
        self._factors: tuple[Tensor, Tensor] | None = None
        self._diffs: tuple[Tensor | None, ...] = (None, None)

    def __call__(self, x: Tensor, rows: slice) -> Tensor:
        terms = []
        if self._factors:
            down, up = self._factors
            terms.append(self._expand(self._multiply(x, down), up[rows]))
        weight, bias = self._diffs
        if weight is not None:
            terms.append(self._multiply(x, weight[rows]))
        if bias is not None:
            terms.append(self._spread(bias[rows]))
        return sum(terms[1:], terms[0])

    def merging(self, tokens: int) -> LinearAdapter | None:
        return self if self._cost.merging_pays(tokens) else None

    def added(self, weight: Tensor, rows: slice) -> Tensor:
        if self._factors:
            down, up = self._factors
            weight = weight.addmm(up[rows], down)
        diff = self._diffs[0]
        if diff is None:
            return weight
        return weight.add_(diff[rows]) if self._factors else weight + diff[rows]

    def add_(self, weight: Tensor, rows: slice) -> None:
        if self._factors:
            down, up = self._factors
            weight.addmm_(up[rows], down)
        if self._diffs[0] is not None:
            weight.add_(self._diffs[0][rows])

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
        factors = joined_factors(updates, self._out_features, dtype)
        self._factors = (factors[0].to(device), factors[1].to(device)) if factors else None
        diffs = joined_diffs(updates, self._out_features, dtype)
        self._diffs = tuple(None if diff is None else diff.to(device) for diff in diffs)
        self._placed = device, dtype

    def release(self) -> None:
        """Let go of the matrices."""
        self._placed, self._factors, self._diffs = None, None, (None, None)

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer would make of x with this weight [N, in] and no bias."""
        return F.linear(x, weight)

    def _expand(self, x: Tensor, up: Tensor) -> Tensor:
        """up [N, R] times the R features of x."""
        return F.linear(x, up)

    def _spread(self, bias: Tensor) -> Tensor:
        """A bias in a shape that adds to the layer's output."""
        return bias


class Conv3dAdapter(LinearAdapter):
    """The same for a convolution, whose weight counts as a matrix over its patches."""

    def __init__(self, layer: nn.Conv3d, size: LayerSize, updates: Sequence[Weighted]) -> None:
        super().__init__(size, updates)
        self._layer = layer

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        layer = self._layer
        kernel = weight.unflatten(1, (layer.in_channels, *layer.kernel_size))
        return F.conv3d(x, kernel, None, layer.stride, layer.padding, layer.dilation)

    def _expand(self, x: Tensor, up: Tensor) -> Tensor:
        return F.conv3d(x, up[:, :, None, None, None])

    def _spread(self, bias: Tensor) -> Tensor:
        return bias[:, None, None, None]


def collect_updates(loras: Sequence[LoraUse]) -> dict[str, list[Weighted]]:
    """What all LoRAs together add, by layer; those of strength 0 add nothing."""
    updates: dict[str, list[Weighted]] = {}
    for use in loras:
        if use.strength == 0:
            continue
        for layer, parts in use.lora.updates.items():
            if use.blocks.includes(layer):
                updates.setdefault(layer, []).extend((part, use.strength) for part in parts)
    return updates


def lora_bytes(loras: Sequence[LoraUse], item_size: int) -> int:
    """Bytes that LoRAs take on the device during a run, in a compute dtype of `item_size` bytes."""
    return item_size * sum(cost.numbers for cost in lora_costs(loras).values())


def lora_costs(loras: Sequence[LoraUse]) -> dict[str, Cost]:
    """What they take in each layer that is changed, by its path."""
    sizes = layer_sizes(loras[0].lora.config) if loras else {}
    return {name: cost_of(sizes[name], parts) for name, parts in collect_updates(loras).items()}


@contextmanager
def attach(model: HunyuanVideoTransformer, loras: Sequence[LoraUse]) -> Iterator[None]:
    """Let LoRAs act on a transformer within the block; afterwards, also after an error, it is as it was.

    Raises InvalidSetting for a LoRA that was read for a transformer of other sizes.
    """
    for use in loras:
        if use.lora.config != model.config:
            raise InvalidSetting(
                f"{use.lora.coverage.file} was read for a transformer of other sizes. Load it again for this one."
            )
    made = make_adapters(model, collect_updates(loras))
    before: list[tuple[Adapted, tuple[Adapter, ...] | None]] = []
    try:
        for name, adapter in made.items():
            layer = cast(Adapted, model.get_submodule(name))
            before.append((layer, vars(layer).get("adapters")))
            layer.adapters = (*layer.adapters, adapter)
        yield
    finally:
        for layer, adapters in reversed(before):
            if adapters is None:
                del layer.adapters
            else:
                layer.adapters = adapters
        for adapter in made.values():  # whoever still holds one, such as the traceback of an error
            adapter.release()


def make_adapters(model: nn.Module, updates: Mapping[str, Sequence[Weighted]]) -> dict[str, LinearAdapter]:
    """An adapter for each layer that is changed, by its path."""
    adapters: dict[str, LinearAdapter] = {}
    sizes = adaptable_layers(model)
    for name, parts in updates.items():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Conv3d):
            adapters[name] = Conv3dAdapter(layer, sizes[name], parts)
        elif name in sizes:
            adapters[name] = LinearAdapter(sizes[name], parts)
        else:
            raise TypeError(f"{name} is a {type(layer).__name__}, which cannot have a LoRA.")
    return adapters

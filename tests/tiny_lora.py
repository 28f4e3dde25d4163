"""A LoRA for the tiny transformer."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from tiny import TRANSFORMER
from torch import Tensor

from hyvideo_lib.checkpoint.lora_layers import layer_sizes
from hyvideo_lib.lora import LowRank

RANK, SCALE = 3, 0.5


@dataclass(frozen=True)
class Adding:
    """An adapter that adds what a function of the input and the output features says."""

    term: Callable[[Tensor, slice], Tensor]
    reads_weight = False

    @property
    def origin(self) -> Hashable:
        return self.term

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        pass

    def merging(self, tokens: int) -> None:
        pass

    def beside(self, rows: slice) -> Callable[[Tensor], Tensor]:
        return lambda x: self.term(x, rows)


def make_layers(
    names: tuple[str, ...] | None = None, seed: int = 0, dtype: torch.dtype = torch.float32, size: float = 1.0
) -> dict[str, LowRank]:
    """Products for the named layers of the tiny transformer, all of its Linears by default."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in layer_sizes(TRANSFORMER).items():
        if name in (names or ()) or (names is None and name != "img_in.proj" and not layer.is_vector):
            down = torch.randn(RANK, layer.in_features, generator=generator) * layer.in_features**-0.5
            up = torch.randn(layer.out_features, RANK, generator=generator) * size
            layers[name] = LowRank(down.to(dtype), up.to(dtype), SCALE)
    return layers

"""Where a cache keeps its tensors: on the device that made them, or in RAM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CopyFn = Callable[[Tensor, torch.device], Tensor]
RAM = torch.device("cpu")


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, which shares no memory with the tensor."""
    return tensor.to(device, copy=True)


class Place:
    """on_host: in RAM; it may become so during a run. copy_fn: how a tensor gets there and back to a device."""

    def __init__(self, on_host: bool, copy_fn: CopyFn = copy_to) -> None:
        self.on_host = on_host
        self._copy_fn = copy_fn

    def store(self, tensor: Tensor) -> Tensor:
        """A copy of it, here."""
        return self._copy_fn(tensor.detach(), RAM) if self.on_host else tensor.detach().clone()

    def fetch(self, kept: Tensor, device: torch.device) -> Tensor:
        """What is kept here, on the device; not to be written to."""
        return self._copy_fn(kept, device) if self.on_host else kept

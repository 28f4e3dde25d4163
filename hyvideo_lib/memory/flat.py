"""A block's tensors side by side in one buffer of bytes, so that the whole block is one copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 256
"""Bytes. Every tensor begins at a multiple, as the allocators of the devices' own tensors give it."""


class FlatLayout:
    """Where each of some tensors lies in a buffer, in the order given.

    tensors: dense, of any dtype and shape, empty and 0-dimensional ones too. Only their dtypes and shapes are kept.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._entries: list[tuple[int, int, torch.dtype, torch.Size]] = []
        end = 0
        for tensor in tensors:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + tensor.nbytes
            self._entries.append((start, end, tensor.dtype, tensor.shape))
        self.num_bytes = end

    def pack(self, tensors: Sequence[Tensor], into: Tensor) -> None:
        """Copy the tensors into a buffer [>= num_bytes] uint8 on the CPU. Gaps between them are left alone."""
        for view, tensor in zip(self.views(into), tensors, strict=True):
            view.copy_(tensor)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors as they lie in a buffer [>= num_bytes] uint8, on whatever device that is; nothing is copied."""
        return [buffer[start:end].view(dtype).view(shape) for start, end, dtype, shape in self._entries]

"""A model's streamed blocks: their homes, the slots they pass through, and what fills these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from .copy_engine import HostBlock, StreamCopyEngine
from .pinned import PinnedPool
from .stream import SlotRing
from .traffic import Traffic


class BlockStream:
    """Brings blocks to the device through slots, the next ones while one computes.

    blocks: by their number, in the order they compute. prefetch: how many blocks ahead, 1 or more. pool: pinned memory
    for the blocks; None keeps none there.
    """

    def __init__(
        self, blocks: Mapping[int, HostBlock], prefetch: int, device: torch.device, pool: PinnedPool | None = None
    ) -> None:
        self.blocks = frozenset(blocks)
        self._hosts = dict(blocks)
        self._engine = StreamCopyEngine(self._hosts, min(prefetch + 1, len(blocks)), device, pool)
        self._ring = SlotRing(list(blocks), prefetch + 1, self._engine)
        self.num_bytes = self._engine.num_bytes

    @contextmanager
    def brought(self, block: int) -> Iterator[list[Tensor]]:
        """The block's tensors on the device, as they are at home, for as long as the caller computes with them."""
        with self._ring.use(block) as slot:
            yield self._hosts[block].layout.views(self._engine.slots[slot])

    @property
    def traffic(self) -> Traffic:
        """What was copied so far, and waited for."""
        return self._engine.traffic

    def close(self) -> None:
        """Give the slots back. The pinned copies stay with the blocks' homes, for the next time."""
        self._engine.close()
        self.num_bytes = 0

"""The copy engine of a real device: one stream for copies, events between it and computing, and nothing that waits.

Copies run beside computing only from page-locked (pinned) memory. Blocks are kept in it where there is RAM for that;
otherwise a thread carries each one from where it lies (perhaps mapped from a file) into a small pinned buffer first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .flat import FlatLayout
from .traffic import StallWatch, Traffic

logger = logging.getLogger("hyvideo")
PINNED_SHARE = 0.5
"""Part of the free RAM that pinned blocks may take: pinned memory is lost to everything else."""


class HostBlock:
    """A block's tensors where they are at home, and their copy in one pinned buffer once there is one."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.layout = FlatLayout(self.tensors)
        self.pinned: Tensor | None = None

    def pin(self, is_pinned: bool = True) -> None:
        """Make the copy. is_pinned: False makes it in ordinary memory, where nothing can be pinned."""
        if self.pinned is None:
            buffer = torch.empty(self.layout.num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
            self.layout.pack(self.tensors, buffer)
            self.pinned = buffer


def pin_blocks(blocks: Sequence[HostBlock], device: torch.device, free_ram: int | None) -> int:
    """Pin as many of the blocks, in order, as the share of the free RAM allows; how many are pinned then.

    free_ram: bytes; None is unknown, and then none is pinned that was not.
    """
    budget = int(PINNED_SHARE * (free_ram or 0))
    for block in blocks:
        if block.pinned is not None:
            continue
        budget -= block.layout.num_bytes
        if budget < 0:
            break
        try:
            block.pin(device.type != "cpu")
        except RuntimeError as error:  # the system has its own limit, which it does not tell beforehand
            logger.info("no more memory can be pinned (%s)", str(error).splitlines()[0])
            break
    return sum(block.pinned is not None for block in blocks)


def can_stream(device: torch.device) -> bool:
    """Whether the device copies while it computes, and PyTorch gives us streams and events for it."""
    return device.type != "cpu" and all(hasattr(torch.get_device_module(device), name) for name in ("Stream", "Event"))


class StreamCopyEngine:
    """Copies blocks into slots of a device that has streams (CUDA, ROCm, XPU; the CPU's stand-ins serve for tests).

    blocks: by their number. Every slot has room for the largest. Blocks that are not pinned go through one pinned
    buffer per slot, filled by a thread.
    """

    def __init__(self, blocks: dict[int, HostBlock], num_slots: int, device: torch.device) -> None:
        self._blocks = blocks
        self._device = device
        self._api: Any = torch.get_device_module(device)
        size = max(block.layout.num_bytes for block in blocks.values())
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(num_slots)]
        self._stream = self._api.Stream() if device.type == "cpu" else self._api.Stream(device)
        self._arrived = [self._api.Event() for _ in self.slots]
        self._computed = [self._api.Event() for _ in self.slots]
        for slot in range(num_slots):  # the slots' memory may still be in use by what computed in it before
            self.release(slot)
        self._staging: list[Tensor] = []
        self._thread: ThreadPoolExecutor | None = None
        if any(block.pinned is None for block in blocks.values()):
            is_pinned = device.type != "cpu"
            self._staging = [torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned) for _ in self.slots]
            self._thread = ThreadPoolExecutor(1, "hyvideo-copy")
        self._pending: dict[int, Future[None]] = {}
        self._moved = 0
        self._stalls = StallWatch(self._api, device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the slots on the device."""
        return sum(slot.nbytes for slot in self.slots)

    @property
    def traffic(self) -> Traffic:
        """Of all copies that were enqueued, and all waits for them."""
        return Traffic(self._moved, self._stalls.seconds)

    def start(self, slot: int, block: int) -> None:
        host = self._blocks[block]
        self._wait_for_thread(slot)
        self._moved += host.layout.num_bytes
        if host.pinned is not None:
            self._copy(slot, host.pinned)
        else:
            assert self._thread is not None
            self._pending[slot] = self._thread.submit(self._carry, slot, host)

    def finish(self, slot: int) -> None:
        self._stalls.begin()
        self._wait_for_thread(slot)
        self._api.current_stream(self._device).wait_event(self._arrived[slot])
        self._stalls.end()

    def release(self, slot: int) -> None:
        self._computed[slot].record(self._api.current_stream(self._device))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._api.current_stream(self._device).wait_stream(self._stream)
        self.slots, self._staging = [], []

    def _wait_for_thread(self, slot: int) -> None:
        """Until the copy is enqueued, not until it is done."""
        if pending := self._pending.pop(slot, None):
            pending.result()

    def _carry(self, slot: int, host: HostBlock) -> None:
        self._arrived[slot].synchronize()  # the buffer's last copy has left it
        host.layout.pack(host.tensors, self._staging[slot])
        self._copy(slot, self._staging[slot][: host.layout.num_bytes])

    def _copy(self, slot: int, source: Tensor) -> None:
        with self._api.stream(self._stream):
            self._stream.wait_event(self._computed[slot])
            target = self.slots[slot]
            target[: len(source)].copy_(source, non_blocking=True)
            self._arrived[slot].record(self._stream)

"""The copy engine of a real device: one stream for copies, events between it and computing, and nothing that waits.

Copies run beside computing only from page-locked (pinned) memory. Blocks are kept in it where there is RAM for that;
otherwise a thread carries each one from where it lies (perhaps mapped from a file) into a small pinned buffer first.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from ..device import on_device
from .flat import FlatLayout
from .pinned import PinnedPool, empty_bytes
from .traffic import StallWatch, Traffic
from .vram import give_back_pinned

logger = logging.getLogger("hyvideo")


class HostBlock:
    """A block's tensors where they are at home, and their copy in pinned memory once there is one."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.layout = FlatLayout(self.tensors)
        self.pinned: Tensor | None = None
        """[bytes] uint8."""
        self._room: Tensor | None = None

    def pin(self, pool: PinnedPool) -> None:
        """Make the copy, if the pool has room for it."""
        if self._room is None:
            self._room = pool.take(self.layout.num_bytes)
        if self._room is not None:
            self.layout.pack(self.tensors, self._room)
            self.pinned = self._room

    def unpin(self) -> None:
        self.pinned = self._room = None


def can_stream(device: torch.device) -> bool:
    """Whether the device copies while it computes, and PyTorch gives us streams and events for it."""
    return device.type != "cpu" and all(hasattr(torch.get_device_module(device), name) for name in ("Stream", "Event"))


class StreamCopyEngine:
    """Copies blocks into slots of a device that has streams (CUDA, ROCm, XPU; the CPU's stand-ins serve for tests).

    blocks: by their number. Every slot has room for the largest. pool: where blocks are kept in pinned memory, each
    from its first copy on, as long as there is room; None keeps none. Blocks without such a copy are carried by a
    thread into one pinned buffer per slot first; into an ordinary one, slower, where no more can be pinned.
    """

    def __init__(
        self, blocks: dict[int, HostBlock], num_slots: int, device: torch.device, pool: PinnedPool | None = None
    ) -> None:
        self._blocks = blocks
        self._device = device
        self._pool = pool
        self._api: Any = torch.get_device_module(device)
        self._size = max(block.layout.num_bytes for block in blocks.values())
        self._stream = self._api.Stream() if device.type == "cpu" else self._api.Stream(device)
        # Copies may be under way into slots that are given up without `close`, and their memory is the next tensor's.
        weakref.finalize(self, _wait_for_copies, self._api, self._stream, device).atexit = False
        with torch.inference_mode(False):  # a thread, which is in no such mode, writes to them
            self.slots = [torch.empty(self._size, dtype=torch.uint8, device=device) for _ in range(num_slots)]
        self._arrived = [self._api.Event() for _ in self.slots]
        self._computed = [self._api.Event() for _ in self.slots]
        for slot in range(num_slots):  # the slots' memory may still be in use by what computed in it before
            self.release(slot)
        self._staging: dict[int, Tensor] = {}
        self._thread: ThreadPoolExecutor | None = None
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
        self._wait_for_thread(slot)  # what became of a copy that is forgotten does not matter
        self._moved += host.layout.num_bytes
        if host.pinned is not None:
            self._copy(slot, host.pinned)
        else:
            self._thread = self._thread or ThreadPoolExecutor(1, "hyvideo-copy")
            self._pending[slot] = self._thread.submit(self._carry, slot, host)

    def finish(self, slot: int) -> None:
        self._stalls.begin()
        if carried := self._wait_for_thread(slot):
            try:
                carried.result()
            finally:
                del carried  # its error would keep itself, and with itself the buffer, until garbage is collected
        self._api.current_stream(self._device).wait_event(self._arrived[slot])
        self._stalls.end()

    def release(self, slot: int) -> None:
        self._computed[slot].record(self._api.current_stream(self._device))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        _wait_for_copies(self._api, self._stream, self._device)
        self.slots = []
        if self._staging:
            for slot in self._staging:
                self._arrived[slot].synchronize()  # what is copied from cannot be given back
            self._staging.clear()
            give_back_pinned(self._device)

    def _wait_for_thread(self, slot: int) -> Future[None] | None:
        """Until the thread has enqueued the slot's copy, not until that is done; None if the thread has no such job."""
        pending = self._pending.get(slot)
        if pending:
            wait([pending])  # remembered until then, for one who interrupts the waiting
            del self._pending[slot]
        return pending

    @torch.no_grad()
    def _carry(self, slot: int, host: HostBlock) -> None:
        with on_device(self._device):  # a thread begins on the first one
            if host.pinned is None and self._pool is not None:
                host.pin(self._pool)
            self._copy(slot, self._staged(slot, host) if host.pinned is None else host.pinned)

    def _staged(self, slot: int, host: HostBlock) -> Tensor:
        """The block in the slot's buffer."""
        if slot not in self._staging:
            self._staging[slot] = self._make_staging()
        self._arrived[slot].synchronize()  # the buffer's last copy has left it
        buffer = self._staging[slot][: host.layout.num_bytes]
        host.layout.pack(host.tensors, buffer)
        return buffer

    def _make_staging(self) -> Tensor:
        try:
            return empty_bytes(self._size, self._device.type != "cpu")
        except RuntimeError as error:
            logger.info("blocks are copied from memory that is not pinned (%s)", str(error).splitlines()[0])
            return empty_bytes(self._size, is_pinned=False)

    def _copy(self, slot: int, source: Tensor) -> None:
        with on_device(self._device), self._api.stream(self._stream):
            self._stream.wait_event(self._computed[slot])
            self.slots[slot][: len(source)].copy_(source, non_blocking=True)
            self._arrived[slot].record(self._stream)


def _wait_for_copies(api: Any, stream: Any, device: torch.device) -> None:
    """Let the stream that computes go on only when they are done. The caller does not wait."""
    api.current_stream(device).wait_stream(stream)

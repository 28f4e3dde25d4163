"""Page-locked (pinned) memory, from which copies run beside computing, for blocks that are streamed again and again."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .flat import ALIGNMENT
from .machine import gib
from .ram import free_ram_bytes
from .vram import give_back_pinned

logger = logging.getLogger("hyvideo")
PINNED_SHARE = 0.5
"""Part of the free RAM that pinned blocks may take: pinned memory is lost to everything else."""
LARGEST_BYTES = 4 * 2**30
"""At once: locking so much takes a second or two, in which a cancel is not heard."""


class Shelves:
    """Where blocks lie in allocations of powers of two, each block in one piece. Numbers only; `PinnedPool` has memory.

    PyTorch rounds a pinned allocation up to a power of two: a block of 216 MiB by itself would take 256, and one of 260
    would take 512. So blocks share allocations, of a size of which they leave little over. expected: bytes of the
    blocks that will come, about.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._rests: list[int] = []  # at the end of each allocation
        self.sizes: list[int] = []
        """Bytes of each allocation."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all allocations."""
        return sum(self.sizes)

    def place(self, num_bytes: int, allocate_fn: Callable[[int], bool]) -> tuple[int, int] | None:
        """(allocation, first byte) of a block, or None. allocate_fn: may one more of so many bytes be had?"""
        num_bytes = -(-max(1, num_bytes) // ALIGNMENT) * ALIGNMENT
        fitting = [i for i, rest in enumerate(self._rests) if rest >= num_bytes]
        if not fitting:
            size = next(filter(allocate_fn, self._good_sizes(num_bytes)), None)
            if size is None:
                return None
            fitting = [len(self.sizes)]
            self.sizes.append(size)
            self._rests.append(size)
        chosen = min(fitting, key=self._rests.__getitem__)
        start = self.sizes[chosen] - self._rests[chosen]
        self._rests[chosen] -= num_bytes
        self._expected -= num_bytes
        return chosen, start

    def _good_sizes(self, num_bytes: int) -> Iterator[int]:
        """Of which the blocks to come waste least if they are as large as this one, then smaller ones."""
        least = 1 << (num_bytes - 1).bit_length()
        to_come = max(1, -(-self._expected // num_bytes))

        def bytes_each(size: int) -> tuple[float, int]:
            return size / min(size // num_bytes, to_come), -size

        sizes = [least << i for i in range(max(1, (LARGEST_BYTES // least).bit_length()))]
        best = min(sizes, key=bytes_each)
        return (size for size in reversed(sizes) if size <= best)


def pinned_bytes(blocks: Sequence[int], free_ram: int | None) -> tuple[int, int]:
    """What a pool takes in the end for blocks of so many bytes, and bytes of the blocks that get room in it.

    free_ram: None allows it all.
    """
    shelves, placed = Shelves(sum(blocks)), 0
    most = None if free_ram is None else PINNED_SHARE * free_ram
    for block in blocks:
        if shelves.place(block, lambda size: most is None or shelves.num_bytes + size <= most):
            placed += block
    return shelves.num_bytes, placed


def empty_bytes(num_bytes: int, is_pinned: bool) -> Tensor:
    """[num_bytes] uint8 on the CPU, which may be written in any thread, whatever mode made it. Raises RuntimeError."""
    with torch.inference_mode(False):
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)


class PinnedPool:
    """Hands out pinned memory, as much as the share of the free RAM and the system allow, and takes none of it back.

    It is given back when the pool and what it handed out are gone. expected: bytes that will be asked for in all,
    about. device: what copies from it; for a CPU it is ordinary memory. free_ram_fn: bytes of free RAM; None is
    unknown, and nothing is pinned then. Not thread-safe.
    """

    def __init__(
        self, expected: int, device: torch.device, free_ram_fn: Callable[[], int | None] = free_ram_bytes
    ) -> None:
        self._shelves = Shelves(expected)
        self._is_pinned = device.type != "cpu"
        self._free_ram_fn = free_ram_fn
        self._buffers: list[Tensor] = []
        self._refused: int | None = None
        give_back_pinned(device)  # of pools before this one
        weakref.finalize(self, _let_go, self._buffers, device).atexit = False

    @property
    def num_bytes(self) -> int:
        """Bytes that were taken of the system."""
        return self._shelves.num_bytes

    def take(self, num_bytes: int) -> Tensor | None:
        """[num_bytes] uint8 in one piece; None if there is not so much to have."""
        spot = self._shelves.place(num_bytes, self._allocate)
        if spot is None:
            return None
        buffer, start = spot
        return self._buffers[buffer][start : start + num_bytes]

    def _allocate(self, size: int) -> bool:
        free = self._free_ram_fn()
        if free is None or self.num_bytes + size > PINNED_SHARE * (free + self.num_bytes):
            return False
        if self._refused is not None and size >= self._refused:
            return False
        try:
            self._buffers.append(empty_bytes(size, self._is_pinned))
        except RuntimeError as error:  # the system has its own limit, which it does not tell beforehand
            logger.info("%s at once cannot be pinned (%s)", gib(size), str(error).splitlines()[0])
            self._refused = size
            return False
        return True


def _let_go(buffers: list[Tensor], device: torch.device) -> None:
    buffers.clear()
    give_back_pinned(device)

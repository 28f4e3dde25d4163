"""Page-locked (pinned) memory, from which copies run beside computing, for blocks that are streamed again and again."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from .ram import free_ram_bytes
from .vram import give_back_pinned

logger = logging.getLogger("hyvideo")
PINNED_SHARE = 0.5
"""Part of the free RAM that pinned blocks may take: pinned memory is lost to everything else."""
CHUNK_BYTES = 256 * 2**20
"""A power of two, as PyTorch rounds every pinned allocation up to one: a block of 216 MiB by itself would take 256."""


def chunk_bytes(wanted: int) -> int:
    """Size of the pieces that so many bytes are taken in."""
    return min(CHUNK_BYTES, 1 << max(0, wanted - 1).bit_length())


def pinned_bytes(wanted: int, free_ram: int | None) -> int:
    """What a pool takes in the end for blocks of so many bytes together; free_ram None allows it all."""
    chunk = chunk_bytes(wanted)
    chunks = -(-wanted // chunk)
    return chunk * (chunks if free_ram is None else min(chunks, int(PINNED_SHARE * free_ram) // chunk))


def empty_bytes(num_bytes: int, is_pinned: bool) -> Tensor:
    """[num_bytes] uint8 on the CPU, which may be written in any thread, whatever mode made it. Raises RuntimeError."""
    with torch.inference_mode(False):
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)


class PinnedPool:
    """Hands out pinned memory, as much as the share of the free RAM and the system allow, and takes none of it back.

    It is given back when the pool and what it handed out are gone. wanted: bytes that will be asked for in all, about.
    device: what copies from it; for a CPU it is ordinary memory. free_ram_fn: bytes of free RAM; None is unknown, and
    nothing is pinned then. Not thread-safe.
    """

    def __init__(
        self, wanted: int, device: torch.device, free_ram_fn: Callable[[], int | None] = free_ram_bytes
    ) -> None:
        self._chunk = chunk_bytes(wanted)
        self._is_pinned = device.type != "cpu"
        self._free_ram_fn = free_ram_fn
        self._rest: list[Tensor] = []
        self._is_full = False
        self.num_bytes = 0
        """Bytes that were taken of the system."""
        give_back_pinned(device)  # of pools before this one
        weakref.finalize(self, _let_go, self._rest, device).atexit = False

    def take(self, num_bytes: int) -> list[Tensor] | None:
        """Buffers of bytes that together have num_bytes; None if there is not so much to have."""
        while sum(map(len, self._rest)) < num_bytes:
            chunk = self._allocate()
            if chunk is None:
                return None
            self._rest.append(chunk)
        pieces: list[Tensor] = []
        while num_bytes:
            first = self._rest.pop(0)
            piece, rest = first[:num_bytes], first[num_bytes:]
            pieces.append(piece)
            num_bytes -= len(piece)
            if len(rest):
                self._rest.insert(0, rest)
        return pieces

    def _allocate(self) -> Tensor | None:
        free = self._free_ram_fn()
        if self._is_full or free is None or self.num_bytes + self._chunk > PINNED_SHARE * (free + self.num_bytes):
            return None
        try:
            chunk = empty_bytes(self._chunk, self._is_pinned)
        except RuntimeError as error:  # the system has its own limit, which it does not tell beforehand
            logger.info("no more memory can be pinned (%s)", str(error).splitlines()[0])
            self._is_full = True
            return None
        self.num_bytes += self._chunk
        return chunk


def _let_go(rest: list[Tensor], device: torch.device) -> None:
    rest.clear()
    give_back_pinned(device)

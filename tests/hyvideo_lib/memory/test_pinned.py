"""Pinned memory: as much as is allowed, a block in one piece, little of it wasted."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.memory import pinned
from hyvideo_lib.memory.copy_engine import HostBlock
from hyvideo_lib.memory.flat import ALIGNMENT
from hyvideo_lib.memory.pinned import PINNED_SHARE, PinnedPool, pinned_bytes

CPU = torch.device("cpu")


class Ram:
    """So many bytes, of which a pool takes some."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.pool: PinnedPool | None = None

    def free(self) -> int:
        return self.num_bytes - (self.pool.num_bytes if self.pool else 0)


def make_pool(wanted: int, ram: int) -> PinnedPool:
    machine = Ram(ram)
    machine.pool = PinnedPool(wanted, CPU, machine.free)
    return machine.pool


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.integers(0, 60_000), st.integers(8, 13))
def test_a_pool_takes_what_it_is_said_to_take(sizes: list[int], ram: int, largest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pinned, "LARGEST_BYTES", 2**largest)
        pool = make_pool(sum(sizes), ram)
        buffers = [pool.take(size) for size in sizes]
        assert (pool.num_bytes, sum(len(buffer) for buffer in buffers if buffer is not None)) == pinned_bytes(
            sizes, ram
        )
        assert pool.num_bytes <= PINNED_SHARE * ram
        if pinned_bytes(sizes, None)[0] <= PINNED_SHARE * ram:
            assert all(buffer is not None for buffer in buffers)
    for size, buffer in zip(sizes, buffers, strict=True):
        assert buffer is None or (len(buffer) == size and buffer.is_contiguous())
    spots = sorted((buffer.data_ptr(), len(buffer)) for buffer in buffers if buffer is not None and len(buffer))
    assert all(low + size <= high for (low, size), (high, _) in itertools.pairwise(spots))
    offsets = [buffer.storage_offset() for buffer in buffers if buffer is not None]
    assert all(offset % ALIGNMENT == 0 for offset in offsets)


MIB = 2**20
BLOCKS = {
    "8 bits": [216 * MIB + 1] * 20 + [108 * MIB + 1] * 40,
    "bfloat16": [432 * MIB + 1] * 20 + [216 * MIB + 1] * 40,
    "4 bits": [122 * MIB] * 20 + [61 * MIB] * 40,
    "just too large": [256 * MIB + 1] * 20 + [128 * MIB + 1] * 40,
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_little_is_lost_to_powers_of_two(name: str, stride: int) -> None:
    """A block by itself would lose up to half: of 256 MiB and a byte, 512."""
    blocks = BLOCKS[name][::stride]
    taken, kept = pinned_bytes(blocks, None)
    assert kept == sum(blocks)
    assert taken <= 1.2 * kept


@pytest.mark.parametrize("ram", [6, 12, 20])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_may_be_pinned_is_used_where_it_is_less_than_the_blocks(name: str, ram: int) -> None:
    blocks, allowed = BLOCKS[name], PINNED_SHARE * ram * 2**30
    taken, kept = pinned_bytes(blocks, ram * 2**30)
    assert taken <= allowed
    assert kept == sum(blocks) or kept >= 0.8 * allowed


def test_what_is_pinned_is_no_part_of_what_may_be_pinned_next() -> None:
    machine = Ram(40 * 1024)
    kept = []
    for _ in range(4):  # the same blocks, asked for again and again, as by streams that begin anew
        machine.pool = machine.pool or PinnedPool(64 * 1024, CPU, machine.free)
        while (buffer := machine.pool.take(1024)) is not None:
            kept.append(buffer)
    assert machine.pool is not None
    assert machine.pool.num_bytes <= 20 * 1024


def test_a_pool_stops_at_the_systems_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it does not tell: smaller allocations are tried then, and none of that size again."""
    monkeypatch.setattr(pinned, "LARGEST_BYTES", 4096)
    make, asked = pinned.empty_bytes, []
    most = 4096

    def refuse(num_bytes: int, is_pinned: bool) -> torch.Tensor:
        asked.append(num_bytes)
        if num_bytes > most:
            raise RuntimeError("CUDA error: out of memory\nmore lines")
        return make(num_bytes, is_pinned)

    monkeypatch.setattr(pinned, "empty_bytes", refuse)
    pool = make_pool(10**5, 10**9)
    assert [pool.take(1024) is not None for _ in range(4)] == [True] * 4
    assert asked == [4096]
    most = 1000
    assert pool.take(1024) is None
    assert asked == [4096, 4096, 2048, 1024]
    most = 4096
    assert pool.take(1024) is None
    assert asked == [4096, 4096, 2048, 1024]
    assert pool.take(512) is not None
    assert asked == [4096, 4096, 2048, 1024, 512]


def test_unknown_ram_is_not_pinned() -> None:
    assert PinnedPool(1000, CPU, lambda: None).take(1) is None


def test_what_nobody_needs_any_more_is_given_back() -> None:
    pool, block = PinnedPool(1000, CPU, lambda: 10**6), HostBlock([torch.arange(100.0)])
    block.pin(pool)
    assert block.pinned is not None
    held = [weakref.ref(piece.untyped_storage()) for piece in (block.pinned, *pool._buffers)]
    block.unpin()
    del pool
    assert all(storage() is None for storage in held)

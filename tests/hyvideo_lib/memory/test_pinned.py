"""Pinned memory: as much as is allowed, in pieces that waste none of it."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.memory import pinned
from hyvideo_lib.memory.copy_engine import HostBlock
from hyvideo_lib.memory.pinned import PINNED_SHARE, PinnedPool, chunk_bytes, pinned_bytes

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


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.integers(0, 60_000), st.integers(5, 10))
def test_a_pool_takes_what_it_is_said_to_take(sizes: list[int], ram: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pinned, "CHUNK_BYTES", 2**chunk)
        pool = make_pool(sum(sizes), ram)
        buffers = [pool.take(size) for size in sizes]
        assert pool.num_bytes == pinned_bytes(sum(sizes), ram) <= PINNED_SHARE * ram
        if pinned_bytes(sum(sizes), None) <= PINNED_SHARE * ram:
            assert None not in buffers
            assert pool.num_bytes - sum(sizes) < chunk_bytes(sum(sizes))
    for size, pieces in zip(sizes, buffers, strict=True):
        assert pieces is None or sum(map(len, pieces)) == size
    addresses = sorted((piece.data_ptr(), len(piece)) for pieces in buffers for piece in pieces or ())
    assert all(low + size <= high for (low, size), (high, _) in itertools.pairwise(addresses))


def test_what_is_pinned_is_no_part_of_what_may_be_pinned_next() -> None:
    machine = Ram(40 * 1024)
    kept = []
    for _ in range(4):  # the same blocks, asked for again and again, as by streams that begin anew
        machine.pool = machine.pool or PinnedPool(64 * 1024, CPU, machine.free)
        while pieces := machine.pool.take(1024):
            kept.append(pieces)
    assert machine.pool is not None
    assert machine.pool.num_bytes <= 20 * 1024


def test_a_pool_stops_at_the_systems_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "CHUNK_BYTES", 1024)
    pool, empty = make_pool(4096, 10**9), pinned.empty_bytes
    assert pool.take(1000) is not None

    def refuse(num_bytes: int, is_pinned: bool) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory\nmore lines")

    monkeypatch.setattr(pinned, "empty_bytes", refuse)
    assert pool.take(1000) is None
    monkeypatch.setattr(pinned, "empty_bytes", empty)
    assert pool.take(1000) is None  # and does not try again
    assert pool.take(24) is not None


def test_unknown_ram_is_not_pinned() -> None:
    assert PinnedPool(1000, CPU, lambda: None).take(1) is None


def test_what_nobody_needs_any_more_is_given_back() -> None:
    pool, block = PinnedPool(1000, CPU, lambda: 10**6), HostBlock([torch.arange(100.0)])
    block.pin(pool)
    assert block.pinned is not None
    held = [weakref.ref(piece.untyped_storage()) for piece in (*block.pinned, *pool._rest)]
    block.unpin()
    del pool
    assert all(storage() is None for storage in held)

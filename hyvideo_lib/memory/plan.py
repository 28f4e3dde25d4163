"""A plan: which weights stay on a device, what is at most there, and what to change until it fits. From sizes alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .block_swap import BlockSwap, choose_blocks, fit_resident, slot_bytes
from .pinned import pinned_bytes
from .simulate import StreamCost, simulate

Chosen = TypeVar("Chosen")
RESERVE_BYTES = 256 * 2**20
RESERVE_SHARE = 1 / 16
"""Kept free beside what is counted: workspaces of the device's libraries, and holes between allocations, which grow
with the work. A choice on the safe side, not a measurement."""
CONTEXT_BYTES = 600 * 2**20
"""What a driver takes of a card for a process that computes, before anything is allocated."""
PROCESS_BYTES = 1 * 2**30
"""RAM of a Python with PyTorch, without any model."""


@dataclass(frozen=True)
class Weights:
    """Bytes of a model. fixed: always on the device. blocks: those that may stay in RAM, num_double of them first.
    visit: of the largest part that comes only for a moment. away: of all those parts."""

    fixed: int
    blocks: tuple[int, ...] = ()
    num_double: int = 0
    visit: int = 0
    away: int = 0

    @property
    def num_bytes(self) -> int:
        return self.fixed + sum(self.blocks) + self.away


@dataclass(frozen=True)
class Way:
    """One way to compute a stage. label: what to set for it, "" for what was asked. work: its bytes beside weights."""

    label: str
    work: int


@dataclass(frozen=True)
class Placement:
    """resident: bytes of weights on the device, slots included. swapped: the blocks that stay in RAM."""

    resident: int
    swapped: tuple[int, ...]


@dataclass(frozen=True)
class StagePlan:
    """A stage as it would run. Bytes at most on the device (None: it computes in RAM) and in RAM, mapped files
    included; whether that fits; the way that was chosen; of the blocks how many stay in RAM.

    ram_short: bytes that RAM has too few, where a device computes. It runs then, but reads files again and again.
    """

    name: str
    device_bytes: int | None
    ram_bytes: int
    weights: Weights
    way: Way
    fits: bool
    swapped: tuple[int, ...] = ()
    resident: int = 0
    ram_short: int = 0


def with_reserve(num_bytes: int) -> int:
    """So much free memory should there be for work of `num_bytes`."""
    return num_bytes + int(num_bytes * RESERVE_SHARE) + RESERVE_BYTES


def choose_way(ways: Iterable[tuple[Chosen, int]], weights: int, free: int | None) -> tuple[Chosen, int]:
    """The first of (way, bytes of its work) that leaves room for all weights, or takes at most half of what is free.

    The ways take less one after the other, and more time; the last, where all are too much. weights: bytes. free: for
    both together; None is without bound. A way that takes less than half would gain only blocks that need not come
    over, which are hidden behind computing where there is enough of it.
    """
    for chosen in ways:
        if free is None or with_reserve(chosen[1]) <= max(free - weights, free // 2):
            break
    return chosen


def place(weights: Weights, work: int, free: int | None, swap: BlockSwap) -> Placement:
    """Where an Offloader leaves the weights, for so much work in so much free memory (None: all of it)."""
    num_blocks = len(weights.blocks)
    must = choose_blocks(swap, weights.num_double, num_blocks - weights.num_double)
    candidates = [i for i in range(num_blocks) if i not in must]
    budget = None if free is None else max(0, free - with_reserve(work) - weights.fixed)
    num_slots = swap.prefetch + 1
    kept = fit_resident(weights.blocks, candidates, budget, num_slots)
    swapped = tuple(i for i in range(num_blocks) if i not in set(kept))
    slots = slot_bytes(weights.blocks, kept, num_slots)
    return Placement(weights.fixed + sum(weights.blocks[i] for i in kept) + slots, swapped)


def plan_stage(
    name: str, weights: Weights, ways: Iterable[Way], free: int | None, ram: int | None, swap: BlockSwap
) -> StagePlan:
    """The first of the ways that fits; where none does, the last. free, ram: bytes; free None computes in RAM."""
    for way in ways:
        placed = place(weights, way.work, free, swap)
        device_bytes = None if free is None else placed.resident + way.work
        pinned = pinned_bytes(sum(weights.blocks[i] for i in placed.swapped), ram)
        in_ram = PROCESS_BYTES + weights.num_bytes + (way.work if free is None else pinned)
        fits = device_bytes is None or placed.resident + with_reserve(way.work) <= (free or 0)
        if ram is not None and free is None:
            fits = fits and in_ram <= ram
        short = 0 if ram is None or free is None else max(0, in_ram - ram)
        plan = StagePlan(name, device_bytes, in_ram, weights, way, fits, placed.swapped, placed.resident, short)
        if fits:
            break
    return plan


def step_cost(
    weights: Weights, swapped: Sequence[int], block_seconds: Sequence[float], prefetch: int, link: float
) -> StreamCost:
    """Simulated cost of the second and every later pass. link: bytes a second."""
    kept = frozenset(range(len(weights.blocks))) - frozenset(swapped)
    one, two = (simulate(weights.blocks, block_seconds, kept, prefetch, link, passes) for passes in (1, 2))
    return StreamCost(two.seconds - one.seconds, two.stalled - one.stalled, two.moved - one.moved)


def block_flops(hidden_size: int, mlp_ratio: float, tokens: int) -> float:
    """Floating-point operations of one block, of either kind, over so many tokens: its matrix products.

    A product of [L, A] and [A, B] takes 2 L A B. A token meets (4 + 2 r) D² weights; attention's two products take
    4 L² D.
    """
    return 2 * tokens * (4 + 2 * mlp_ratio) * hidden_size**2 + 4 * tokens**2 * hidden_size

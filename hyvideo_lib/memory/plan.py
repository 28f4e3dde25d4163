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
    visit: of the largest part that comes only for a moment. away: of all those parts. is_mapped: whether RAM only shows
    their file, and may forget it; otherwise they were converted when they were loaded, and are held."""

    fixed: int
    blocks: tuple[int, ...] = ()
    num_double: int = 0
    visit: int = 0
    away: int = 0
    is_mapped: bool = True

    @property
    def num_bytes(self) -> int:
        return self.fixed + sum(self.blocks) + self.away


@dataclass(frozen=True)
class Way:
    """One way to compute a stage. label: what is done for it, "" for what was asked. work: its bytes beside weights.
    calls: how often the blocks come by in a step. is_asked: whether a run takes it by itself, with no option set.
    ram: bytes that wait in RAM, beside the work."""

    label: str
    work: int
    calls: int = 1
    is_asked: bool = True
    ram: int = 0


@dataclass(frozen=True)
class RamUse:
    """Bytes of RAM. files: weights of which RAM only shows the file. converted: those that are held. buffers: pinned
    copies of blocks on their way to a device. work: of computing in RAM. waiting: of computing elsewhere. process: of
    the program itself.

    again: of the files, what is read again and again; the rest is read once.
    """

    files: int = 0
    converted: int = 0
    buffers: int = 0
    work: int = 0
    waiting: int = 0
    process: int = PROCESS_BYTES
    again: int = 0

    @property
    def held(self) -> int:
        """What must be there."""
        return self.converted + self.buffers + self.work + self.waiting + self.process

    @property
    def total(self) -> int:
        return self.files + self.held


@dataclass(frozen=True)
class Placement:
    """resident: bytes of weights on the device, slots included. swapped: the blocks that stay in RAM."""

    resident: int
    swapped: tuple[int, ...]


@dataclass(frozen=True)
class StagePlan:
    """A stage as it would run, in bytes. device_bytes: at most on the device; None: it computes in RAM. ram: what it
    takes of RAM. way: the one that was chosen. swapped: the blocks that stay in RAM. resident: of weights on the
    device.

    device_short: what the device has too few, with the reserve. ram_short: what RAM has too few, mapped files included;
    held_short: of that which must be there; files_short: of the files that are read again and again, from the disk
    then. All three are 0 where the free RAM is not known. advice: what would make it fit, one sentence each.
    """

    name: str
    device_bytes: int | None
    ram: RamUse
    weights: Weights
    way: Way
    swapped: tuple[int, ...] = ()
    resident: int = 0
    device_short: int = 0
    ram_short: int = 0
    held_short: int = 0
    files_short: int = 0
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.device_short and not self.held_short

    @property
    def is_slow(self) -> bool:
        """It fits, but reads files from the disk again and again."""
        return self.fits and self.files_short > 0

    @property
    def fits_as_asked(self) -> bool:
        return self.fits and self.way.is_asked

    @property
    def ram_bytes(self) -> int:
        return self.ram.total

    @property
    def reserve(self) -> int:
        """Bytes that are kept free on the device beside the rest."""
        return 0 if self.device_bytes is None else with_reserve(self.way.work) - self.way.work


def with_reserve(num_bytes: int) -> int:
    """So much free memory should there be for work of `num_bytes`."""
    return num_bytes + int(num_bytes * RESERVE_SHARE) + RESERVE_BYTES


def choose_way(
    ways: Iterable[tuple[Chosen, int]], weights: int, free: int | None, least: int = 0
) -> tuple[Chosen, int]:
    """The first of (way, bytes of its work) that leaves room for all weights, or takes at most half of what is free and
    leaves room for what of them must be there.

    The ways take less one after the other, and more time; the last, where all are too much. weights: bytes; least: of
    those that must be there. free: for all together; None is without bound. A way that takes less than half would gain
    only blocks that need not come over, which are hidden behind computing where there is enough of it.
    """
    for chosen in ways:
        if free is None or with_reserve(chosen[1]) <= max(free - weights, min(free // 2, free - least)):
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
    name: str,
    weights: Weights,
    ways: Iterable[Way],
    free: int | None,
    ram: int | None,
    swap: BlockSwap,
    is_repeated: bool = True,
) -> StagePlan:
    """The first of the ways that fits; where none does, the last. free, ram: bytes; free None computes in RAM.

    There the first that leaves room for the files too goes before one that only fits. is_repeated: the weights are gone
    through many times; otherwise once, and then no block is kept in pinned memory.
    """
    slow: StagePlan | None = None
    for way in ways:
        plan = _plan_way(name, weights, way, free, ram, swap, is_repeated)
        if plan.fits and not plan.is_slow:
            return plan
        if plan.fits:
            slow = slow or plan
            if free is not None:  # no way changes what the files take
                break
    return slow or plan


def _plan_way(
    name: str, weights: Weights, way: Way, free: int | None, ram: int | None, swap: BlockSwap, is_repeated: bool
) -> StagePlan:
    placed = place(weights, way.work, free, BlockSwap() if free is None else swap)
    use = _ram_use(weights, way, placed.swapped, free is None, ram, swap.prefetch, is_repeated)
    held_short = 0 if ram is None else max(0, use.held - ram)
    return StagePlan(
        name,
        None if free is None else placed.resident + way.work,
        use,
        weights,
        way,
        placed.swapped,
        placed.resident,
        0 if free is None else max(0, placed.resident + with_reserve(way.work) - free),
        0 if ram is None else max(0, use.total - ram),
        held_short,
        0 if ram is None else max(0, use.held + use.again - ram) - held_short,
    )


def _ram_use(
    weights: Weights,
    way: Way,
    swapped: Sequence[int],
    is_home: bool,
    ram: int | None,
    prefetch: int,
    is_repeated: bool,
) -> RamUse:
    """is_home: whether it computes in RAM, where no weight is copied."""
    blocks = [weights.blocks[i] for i in swapped]
    converted = 0 if weights.is_mapped else weights.num_bytes
    pinned = kept = staging = 0
    if prefetch and blocks:  # without prefetch blocks are copied from where they lie
        left = None if ram is None else max(0, ram - PROCESS_BYTES - converted)
        pinned, kept = pinned_bytes(blocks, left) if is_repeated else (0, 0)
        staging = 0 if kept == sum(blocks) else slot_bytes(blocks, (), prefetch + 1)
    again = weights.num_bytes if is_home else weights.away + sum(blocks) - kept
    return RamUse(
        files=weights.num_bytes - converted,
        converted=converted,
        buffers=pinned + staging,
        work=way.work if is_home else 0,
        waiting=way.ram,
        again=again if is_repeated and weights.is_mapped else 0,
    )


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

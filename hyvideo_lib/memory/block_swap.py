"""Block swap: which of a transformer's blocks stay at home and come to the device only while they compute.

Weights are frozen, so nothing is ever copied back. In the plain, synchronous form a block's weights are copied, the
block runs, the copy is dropped. With `prefetch` the next blocks are copied meanwhile (memory.stream).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidSetting

AUTO = -1
"""Only as many as the free memory asks for."""


@dataclass(frozen=True)
class BlockSwap:
    """How many double and single blocks are swapped at least; short memory swaps more. Raises InvalidSetting.

    prefetch: how many blocks ahead the copies run, on devices that can copy while they compute. Each takes a block's
    size of the device's memory, beside the block that computes. 0 copies each when its turn comes.
    """

    double_blocks: int = AUTO
    single_blocks: int = AUTO
    prefetch: int = 1

    def __post_init__(self) -> None:
        for name in ("double_blocks", "single_blocks"):
            if getattr(self, name) < AUTO:
                raise InvalidSetting(
                    f"{name} to swap is {getattr(self, name)}, but must be 0 or more, or {AUTO} for automatic."
                )
        if self.prefetch < 0:
            raise InvalidSetting(f"prefetch is {self.prefetch}, but must be 0 or more blocks.")


def spread_evenly(count: int, total: int) -> list[int]:
    """`count` of the indices 0..total - 1 at even distances, so that copies and computing alternate; all if too many.

    count: 0 or more.
    """
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def choose_blocks(swap: BlockSwap, num_double: int, num_single: int) -> frozenset[int]:
    """The blocks that are swapped in any case, in one numbering with the double ones first."""
    double = spread_evenly(max(0, swap.double_blocks), num_double)
    single = spread_evenly(max(0, swap.single_blocks), num_single)
    return frozenset((*double, *(num_double + i for i in single)))


def fit_resident(sizes: Sequence[int], candidates: Sequence[int], budget: int | None, num_slots: int = 0) -> list[int]:
    """Which of the candidate blocks can stay on the device within `budget` bytes (None: all), spread evenly.

    sizes: bytes of every block. num_slots: places of the largest swapped block's size that are taken from the budget
    as soon as any block is swapped. The answer leaves out as few as possible.
    """
    for out in range(len(candidates) + 1):
        left_out = set(spread_evenly(out, len(candidates))) if out else set()
        kept = [index for place, index in enumerate(candidates) if place not in left_out]
        if budget is None or sum(sizes[i] for i in kept) + slot_bytes(sizes, kept, num_slots) <= budget:
            return kept
    return []


def slot_bytes(sizes: Sequence[int], kept: Sequence[int], num_slots: int) -> int:
    """Bytes of the slots for the blocks that are not kept; there are never more slots than such blocks."""
    swapped = [size for i, size in enumerate(sizes) if i not in set(kept)]
    return min(num_slots, len(swapped)) * max(swapped, default=0)

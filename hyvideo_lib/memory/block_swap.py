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


def swap_order(total: int) -> list[int]:
    """The indices 0..total - 1 in the order in which blocks are given up.

    However many of the first are taken, they lie apart, no distance more than twice another, so that copies and
    computing alternate. As fewer are always among more, another number moves only the blocks that it must. The order is
    that of the numbers from 1 on with their binary digits reversed.
    """
    digits = total.bit_length()
    return sorted(range(total), key=lambda index: f"{index + 1:0{digits}b}"[::-1])


def choose_blocks(swap: BlockSwap, num_double: int, num_single: int) -> frozenset[int]:
    """The blocks that are swapped in any case, in one numbering with the double ones first."""
    double = swap_order(num_double)[: max(0, swap.double_blocks)]
    single = swap_order(num_single)[: max(0, swap.single_blocks)]
    return frozenset((*double, *(num_double + i for i in single)))


def fit_resident(sizes: Sequence[int], candidates: Sequence[int], budget: int | None, num_slots: int = 0) -> list[int]:
    """Which of the candidate blocks can stay on the device within `budget` bytes (None: all), in their own order.

    sizes: bytes of every block. num_slots: places of the largest swapped block's size that are taken from the budget
    as soon as any block is swapped. The answer leaves out as few as possible, the first ones of `swap_order`, and so
    what stays within a smaller budget stays within a larger one too.
    """
    order = swap_order(len(candidates))
    for out in range(len(candidates) + 1):
        kept = [candidates[place] for place in sorted(order[out:])]
        if budget is None or sum(sizes[i] for i in kept) + slot_bytes(sizes, kept, num_slots) <= budget:
            return kept
    return []


def slot_bytes(sizes: Sequence[int], kept: Sequence[int], num_slots: int) -> int:
    """Bytes of the slots for the blocks that are not kept; there are never more slots than such blocks."""
    swapped = [size for i, size in enumerate(sizes) if i not in set(kept)]
    return min(num_slots, len(swapped)) * max(swapped, default=0)

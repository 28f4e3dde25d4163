"""Block swap in simulated time: streaming against copies in turn and against an exchange, for the released model.

Nothing is measured. The scheduler is the one that runs on a card; the link and the card are numbers (below), the
bytes and operations of the blocks follow from the architecture. An exchange, as some peers do it, sends the block that
leaves back to RAM over the same link; it is given the same prefetch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.rows import OURS, Options, Row, simulated_row
from hyvideo_lib.memory.block_swap import spread_evenly
from hyvideo_lib.memory.simulate import StreamCost, simulate

HIDDEN, DOUBLE, SINGLE = 3072, 20, 40
BYTES_PER_WEIGHT = 1
DOUBLE_WEIGHTS, SINGLE_WEIGHTS = 36, 15
"""In units of hidden size squared: two streams of 12 and 6 for their modulation; 12 and 3."""
BANDWIDTH = 25e9
"""Bytes a second: PCIe 4.0 x16 in practice."""
SPEED = 100e12
"""Operations a second: what a large consumer card reaches of its 16-bit peak."""
TOKENS = {
    "512 x 320 x 61": 10_496,
    "848 x 480 x 129": 52_726,
    "1280 x 720 x 129": 119_056,
}
"""Image tokens and 256 of text."""
QUICK_TOKENS = {"tiny": 512}
STEPS = 20
SWAPPED = (30, 60)


def run(options: Options) -> Iterator[Row]:
    sizes = [DOUBLE_WEIGHTS * HIDDEN**2 * BYTES_PER_WEIGHT] * DOUBLE
    sizes += [SINGLE_WEIGHTS * HIDDEN**2 * BYTES_PER_WEIGHT] * SINGLE
    for name, tokens in (QUICK_TOKENS if options.is_quick else TOKENS).items():
        seconds = [block_seconds(tokens)] * len(sizes)
        for count in SWAPPED:
            case = f"{name}, {count} of 60 blocks swapped"
            if options.wants(case):
                kept = frozenset(range(len(sizes))) - frozenset(spread_evenly(count, len(sizes)))
                for side, cost in costs(sizes, seconds, kept).items():
                    stalled = cost.stalled / cost.seconds
                    yield simulated_row("swap", case, side, cost.seconds / STEPS, stalled, cost.moved // STEPS)


def block_seconds(tokens: int) -> float:
    """Time of one block: its products with weights and its attention."""
    return (24 * tokens * HIDDEN**2 + 4 * tokens**2 * HIDDEN) / SPEED


def costs(sizes: list[int], seconds: list[float], kept: frozenset[int]) -> dict[str, StreamCost]:
    resident = simulate(sizes, seconds, frozenset(range(len(sizes))), 1, BANDWIDTH, STEPS)
    exchanged = simulate(sizes, seconds, kept, 1, BANDWIDTH / 2, STEPS)
    return {
        "resident": resident,
        OURS: simulate(sizes, seconds, kept, 1, BANDWIDTH, STEPS),
        "in turn": simulate(sizes, seconds, kept, 0, BANDWIDTH, STEPS),
        "exchange": replace(exchanged, moved=2 * exchanged.moved),
    }

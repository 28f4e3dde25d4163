"""Block swap in simulated time: streaming against copies in turn and against an exchange, for the released model.

Nothing is measured. The scheduler is the one that runs on a card; the link and the card are numbers (below), the
bytes and operations of the blocks follow from the architecture. An exchange, as some peers do it, sends the block that
leaves back to RAM over the same link; it is given the same prefetch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.rows import OURS, Options, Row, simulated_row
from hyvideo_lib.memory.block_swap import swap_order
from hyvideo_lib.memory.simulate import StreamCost, simulate

HIDDEN, DOUBLE, SINGLE = 3072, 20, 40
WEIGHTS = {"double": 24, "single": 12}
"""Of a block, in units of hidden size squared: two streams of 12, and 12. A byte each."""
MODULATION = {"double": 12, "single": 3}
"""What turns the conditioning into shifts, scales and gates. Ours sends it once in a run, peers with its block."""
KINDS = ["double"] * DOUBLE + ["single"] * SINGLE
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
    for name, tokens in (QUICK_TOKENS if options.is_quick else TOKENS).items():
        seconds = [block_seconds(tokens)] * len(KINDS)
        for count in SWAPPED:
            case = f"{name}, {count} of {len(KINDS)} blocks swapped"
            if options.wants(case):
                kept = frozenset(swap_order(len(KINDS))[count:])
                for side, cost in costs(seconds, kept).items():
                    stalled = cost.stalled / cost.seconds
                    yield simulated_row("swap", case, side, cost.seconds / STEPS, stalled, cost.moved // STEPS)


def block_seconds(tokens: int) -> float:
    """Time of one block: its products with weights and its attention."""
    return (24 * tokens * HIDDEN**2 + 4 * tokens**2 * HIDDEN) / SPEED


def costs(seconds: list[float], kept: frozenset[int]) -> dict[str, StreamCost]:
    """What a run of STEPS costs each side."""
    sizes = [WEIGHTS[kind] * HIDDEN**2 for kind in KINDS]
    whole = [(WEIGHTS[kind] + MODULATION[kind]) * HIDDEN**2 for kind in KINDS]
    exchanged = simulate(whole, seconds, kept, 1, BANDWIDTH / 2, STEPS)
    return {
        "resident": simulate(whole, seconds, frozenset(range(len(KINDS))), 1, BANDWIDTH, STEPS),
        OURS: with_modulations(simulate(sizes, seconds, kept, 1, BANDWIDTH, STEPS)),
        "in turn": simulate(whole, seconds, kept, 0, BANDWIDTH, STEPS),
        "exchange": replace(exchanged, moved=2 * exchanged.moved),
    }


def with_modulations(cost: StreamCost) -> StreamCost:
    """The same after all modulations have come once, which nothing hides."""
    moved = sum(MODULATION[kind] for kind in KINDS) * HIDDEN**2
    wait = moved / BANDWIDTH
    return StreamCost(cost.seconds + wait, cost.stalled + wait, cost.moved + moved)

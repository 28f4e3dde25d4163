"""A copy engine that copies nothing and keeps the time: what streaming costs at a given bandwidth and speed.

Copies follow each other on one link, blocks compute one after another, and each waits for what it must. It also holds
the caller to the order that a real engine relies on, and says at once when a slot would be overwritten while in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .stream import SlotRing

FREE, STARTED, FINISHED = "free", "started", "finished"


class SlotError(AssertionError):
    """A slot was used out of its order."""


class TimedEngine:
    """CopyEngine in simulated seconds, for a link of `bandwidth` bytes a second.

    sizes: bytes of every block. compute() lets time pass. Public: seconds (the clock of computing), stalled (the part
    of it that waited for copies), moved (bytes copied).
    """

    def __init__(self, sizes: Mapping[int, int], num_slots: int, bandwidth: float) -> None:
        self._sizes = sizes
        self._bandwidth = bandwidth
        self._states = [FREE] * num_slots
        self._contents: list[int | None] = [None] * num_slots
        self._free_at = [0.0] * num_slots
        self._arrives_at = [0.0] * num_slots
        self._link_free_at = 0.0
        self.seconds = self.stalled = 0.0
        self.moved = 0

    def start(self, slot: int, block: int) -> None:
        if self._states[slot] == FINISHED:
            raise SlotError(
                f"block {block} would overwrite block {self._contents[slot]} in slot {slot} while it computes"
            )
        begin = max(self._link_free_at, self._free_at[slot], self.seconds)
        self._link_free_at = self._arrives_at[slot] = begin + self._sizes[block] / self._bandwidth
        self.moved += self._sizes[block]
        self._states[slot], self._contents[slot] = STARTED, block

    def finish(self, slot: int) -> None:
        self._expect(slot, STARTED)
        wait = max(0.0, self._arrives_at[slot] - self.seconds)
        self.seconds += wait
        self.stalled += wait
        self._states[slot] = FINISHED

    def release(self, slot: int) -> None:
        self._expect(slot, FINISHED)
        self._free_at[slot] = self.seconds
        self._states[slot] = FREE

    def close(self) -> None:
        self._contents = []

    def compute(self, seconds: float) -> None:
        """Something computes for so long."""
        self.seconds += seconds

    def block_in(self, slot: int) -> int | None:
        """What lies in a slot; None if nothing ever did."""
        return self._contents[slot]

    def _expect(self, slot: int, state: str) -> None:
        if self._states[slot] != state:
            raise SlotError(f"slot {slot} is {self._states[slot]}, not {state}")


@dataclass(frozen=True)
class StreamCost:
    """Simulated: seconds of all passes, the part of them that waited for copies, bytes over the link."""

    seconds: float
    stalled: float
    moved: int


def simulate(
    sizes: Sequence[int],
    compute_seconds: Sequence[float],
    kept: frozenset[int],
    prefetch: int,
    bandwidth: float,
    passes: int,
) -> StreamCost:
    """What streaming every block but the kept ones costs. sizes, compute_seconds: of every block, in their order."""
    streamed = [i for i in range(len(sizes)) if i not in kept]
    if not streamed:
        return StreamCost(passes * sum(compute_seconds), 0.0, 0)
    engine = TimedEngine(dict(enumerate(sizes)), prefetch + 1, bandwidth)
    ring = SlotRing(streamed, prefetch + 1, engine)
    for _ in range(passes):
        for block, seconds in enumerate(compute_seconds):
            if block in kept:
                engine.compute(seconds)
            else:
                with ring.use(block):
                    engine.compute(seconds)
    return StreamCost(engine.seconds, engine.stalled, engine.moved)

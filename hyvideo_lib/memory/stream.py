"""Streaming: blocks come to the device one after another while others compute, and never go back.

The weights are frozen, so a block's place on the device is simply overwritten. There are a few places, called slots;
the next blocks are on their way into all but the one that computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class CopyEngine(Protocol):
    """Copies blocks into slots and orders that with computing. No call waits for a copy or for computing to end.

    Of one slot the calls come as start, finish, release, start and so on. A start may also follow a start, or a call
    that failed: the first copy is then forgotten, and whether it failed. A slot that was finished is released before it
    is started again, always.
    """

    def start(self, slot: int, block: int) -> None:
        """Copy the block into the slot, once all computing enqueued before the slot's release is over."""
        ...

    def finish(self, slot: int) -> None:
        """What is enqueued for computing from now on waits for the slot's copy."""
        ...

    def release(self, slot: int) -> None:
        """What was enqueued up to now is the last that needs what is in the slot."""
        ...

    def close(self) -> None:
        """Give the slots' memory back, after all copies. No other call may follow."""
        ...


class SlotRing:
    """Which streamed block goes into which slot, and when its copy starts.

    order: the streamed blocks in the order they compute, pass after pass. The k-th use goes into slot k modulo
    num_slots; with it the copies of the num_slots - 1 uses after it are under way, across the end of a pass too. A
    block that is not the next one (a pass was cut short) starts anew from there.
    """

    def __init__(self, order: Sequence[int], num_slots: int, engine: CopyEngine) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}, but must be 1 or more")
        self._order = list(order)
        self._places = {block: place for place, block in enumerate(self._order)}
        self._num_slots = min(num_slots, len(self._order))
        self._engine = engine
        self._used = 0  # uses that are over
        self._started = 0  # uses whose copies were started; never more than num_slots ahead of those that are over

    @contextmanager
    def use(self, block: int) -> Iterator[int]:
        """The slot that holds the block while the caller computes with it. Raises KeyError for a block not streamed."""
        self._go_to(self._places[block])
        this = self._used
        slot = this % self._num_slots
        try:
            while self._started < this + self._num_slots:
                self._engine.start(self._started % self._num_slots, self._order[self._started % len(self._order)])
                self._started += 1
            self._engine.finish(slot)
        except BaseException:
            self._restart(0)  # what is in the slots is not what it was to be
            raise
        try:
            yield slot
        finally:
            self._used = this + 1
            self._engine.release(slot)

    def _go_to(self, place: int) -> None:
        if self._used % len(self._order) != place:
            self._restart(place)

    def _restart(self, place: int) -> None:
        """Forget all copies that were started, and begin with the one at this place."""
        length = len(self._order)
        self._used = self._started = -(-self._started // length) * length + place

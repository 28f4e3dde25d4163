"""What crosses the link between RAM and the device, and how long computing waited for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Traffic:
    """moved_bytes: copied to the device, exactly. stalled_seconds: of the device's computing, spent waiting for
    streamed blocks; None where that cannot be known: blocks copied in their turn, devices without timed events.
    """

    moved_bytes: int = 0
    stalled_seconds: float | None = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.moved_bytes + other.moved_bytes, _both(self.stalled_seconds, other.stalled_seconds, sign=1))

    def __sub__(self, before: Traffic) -> Traffic:
        """What came since `before`."""
        return Traffic(
            self.moved_bytes - before.moved_bytes, _both(self.stalled_seconds, before.stalled_seconds, sign=-1)
        )


def _both(one: float | None, other: float | None, sign: int) -> float | None:
    return None if one is None or other is None else one + sign * other


class StallWatch:
    """Seconds that a device's stream stood still for copies: the time between an event before the wait and one after.

    api: a device module of PyTorch. Events are recorded on the stream that computes, so nothing waits for them; only
    asking for `seconds` does.
    """

    def __init__(self, api: Any, device: torch.device) -> None:
        self._api, self._device = api, device
        self._pairs: deque[tuple[Any, Any]] = deque()
        self._counted = 0.0
        self._before: Any = None
        self._can_time = device.type != "cpu" and hasattr(api.Event, "elapsed_time")

    def begin(self) -> None:
        """Computing is about to wait."""
        self._before = self._mark()

    def end(self) -> None:
        """What it waited for was enqueued."""
        if self._can_time:
            self._pairs.append((self._before, self._mark()))
            while self._pairs[0][1].query() and len(self._pairs) > 1:
                self._count()

    @property
    def seconds(self) -> float | None:
        """Of all waits that ended; waits for the last of them. None where the device cannot time."""
        if not self._can_time:
            return None
        while self._pairs:
            self._pairs[0][1].synchronize()
            self._count()
        return self._counted

    def _count(self) -> None:
        before, after = self._pairs.popleft()
        self._counted += before.elapsed_time(after) / 1000  # it tells milliseconds

    def _mark(self) -> Any:
        if not self._can_time:
            return None
        event = self._api.Event(enable_timing=True)
        event.record(self._api.current_stream(self._device))
        return event

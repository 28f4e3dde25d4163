"""The card under a measurement: its memory, capped or not, and what a call takes of its time and memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import TypeVar

import torch

from benchmarks.measure import seconds_of
from benchmarks.rows import Measurement, Row, ratio_row

OUT_OF_MEMORY = "out of memory"
LONG_CALL = 10.0
"""Seconds. What a first call does once is nothing beside so long a call, and a second one would say the same."""
SYSTEM = 1.0
"""GiB of a card that are the desktop's, and the driver's and its libraries', which no cap counts."""
Made = TypeVar("Made")


def nothing(made: object) -> None:
    return None


def device_of(name: str) -> torch.device:
    """The device of that name; of "cuda" the current one, with its number, which some of PyTorch's functions want."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def measure(
    call: Callable[[], Made], device: torch.device, repeats: int, look: Callable[[Made], None] = nothing
) -> Measurement:
    """Seconds of so many calls after one that is not timed, and the peak of all memory that PyTorch handed out.

    A first call that is long is the only one. look: is given what the first call made. On the CPU there is no such
    counter, and no number.
    """
    made: list[Made] = []
    held = reset_peak(device)
    seconds = [seconds_of(lambda: made.append(call()), device)]
    peak = peak_of(device)
    look(made.pop())
    if seconds[0] <= LONG_CALL:
        reset_peak(device)
        seconds = [seconds_of(call, device) for _ in range(repeats)]
        peak = peak_of(device)
    return measurement(seconds, peak, held)


def measurement(seconds: list[float], peak: int | None, held: int) -> Measurement:
    """held: bytes of weights and inputs before the first call."""
    if peak is None:
        return Measurement(seconds)
    return Measurement(seconds, peak, {"counts": "all memory, weights included", "held_bytes": held, **_around()})


def _around() -> dict[str, int]:
    """Of the current card: bytes that PyTorch took of it at most, holes included; that others and the driver have; how
    often memory was given back and taken again for want of one piece, which takes time."""
    free, total = torch.cuda.mem_get_info()
    return {
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "outside_bytes": total - free - torch.cuda.memory_reserved(),
        "allocation_retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
    }


def reset_peak(device: torch.device) -> int:
    """Let `peak_of` count from now on; the bytes that are held now."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_of(device: torch.device) -> int | None:
    """The most bytes that PyTorch handed out; None where nobody counts."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def ratio_apart(benchmark: str, case: str, peer: str, ours: Measurement, theirs: Measurement) -> Row:
    """The ratio of sides that were measured one after the other: of their medians, as no round of one is another's."""
    return ratio_row(benchmark, case, peer, *(replace(side, seconds=[median(side.seconds)]) for side in (ours, theirs)))


@contextmanager
def capped(device: torch.device, gib: float | None) -> Iterator[None]:
    """As if the card had so many GiB, some of them the system's: what PyTorch may take of it in this context.

    On the CPU nothing is capped.
    """
    if device.type != "cuda" or gib is None:
        yield
        return
    whole = torch.cuda.get_device_properties(device).total_memory
    empty(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gib - SYSTEM) * 2**30 / whole), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        empty(device)


def free_bytes(device: torch.device, gib: float) -> int:
    """What PyTorch may still take under a cap of so many GiB."""
    used = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return max(0, int((gib - SYSTEM) * 2**30) - used)


def empty(device: torch.device) -> None:
    """Give back what nothing refers to, on a card."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()

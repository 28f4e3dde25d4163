"""The card under a measurement: its memory, capped or not, and what a call takes of its time and memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.measure import seconds_of
from benchmarks.rows import Measurement

OUT_OF_MEMORY = "out of memory"


def measure(call: Callable[[], object], device: torch.device, repeats: int) -> Measurement:
    """Seconds of so many calls after one that is not timed, and the peak of all memory that PyTorch handed out.

    On the CPU there is no such counter, and no number.
    """
    gc.collect()
    call()
    if device.type != "cuda":
        return Measurement([seconds_of(call, device) for _ in range(repeats)])
    torch.cuda.reset_peak_memory_stats(device)
    seconds = [seconds_of(call, device) for _ in range(repeats)]
    return Measurement(seconds, torch.cuda.max_memory_allocated(device), {"counts": "all memory, weights included"})


@contextmanager
def capped(device: torch.device, gib: float | None) -> Iterator[None]:
    """As if the card had so many GiB: what PyTorch may take of it in this context. On the CPU nothing is capped."""
    if device.type != "cuda" or gib is None:
        yield
        return
    whole = torch.cuda.get_device_properties(device).total_memory
    empty(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / whole), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        empty(device)


def free_bytes(device: torch.device, gib: float | None) -> int | None:
    """What PyTorch may still take under a cap of so many GiB; None where there is no cap to count against."""
    if gib is None:
        return None
    used = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return max(0, int(gib * 2**30) - used)


def empty(device: torch.device) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

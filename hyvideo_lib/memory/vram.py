"""How much of a device's memory there is to have."""

from __future__ import annotations

import gc
import platform
import sys
from functools import cache
from typing import Any

import torch


def free_device_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None if it has no memory of its own, or does not say.

    What PyTorch keeps of it without using it counts as free.
    """
    if device.type == "cpu":
        return None
    api: Any = torch.get_device_module(device)
    if not hasattr(api, "mem_get_info"):
        return None
    try:
        unasked = api.mem_get_info(device)[0]
    except RuntimeError:  # some of Intel's cards and drivers do not tell: as if no other program used the card
        unasked = api.get_device_properties(device).total_memory - api.memory_reserved(device)
    return int(unasked) + int(api.memory_reserved(device)) - int(api.memory_allocated(device))


def stay_on_card(device: torch.device) -> None:
    """Let allocations beyond what is free now fail, as they do elsewhere.

    On Windows, and in its Linux, the driver puts into RAM what the card has no room for, and every step takes many
    times as long without a word. What is caught instead is dealt with: smaller tiles, more blocks in RAM.
    """
    if device.type != "cuda" or not _spills():
        return
    free, total = free_device_bytes(device), torch.cuda.mem_get_info(device)[1]
    allowed = (free or 0) + torch.cuda.memory_allocated(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)


class SpillWatch:
    """Sees what the driver put into RAM, for one who may not forbid it: a limit, once set, holds for the whole process.

    device: with the weights on it that will be there. is_on: whether it looks; on the systems that `stay_on_card` names
    alone there is something to see.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._room = device, 0
        self.is_on = device.type == "cuda" and _spills()
        if self.is_on:
            free, total = torch.cuda.mem_get_info(device)
            self._room = min(total, free + torch.cuda.memory_reserved(device))

    @property
    def num_bytes(self) -> int:
        """Bytes that PyTorch holds beyond what the card had for it; what it keeps unused among them."""
        return max(0, torch.cuda.memory_reserved(self._device) - self._room) if self.is_on else 0


@cache
def _spills() -> bool:
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def reset_device_peak(device: torch.device) -> None:
    """Let `device_peak_bytes` count from now on; nothing where it does not count.

    A device that nobody has used has counted nothing, and does not take the call.
    """
    api: Any = None if device.type == "cpu" else torch.get_device_module(device)
    if hasattr(api, "reset_peak_memory_stats") and api.is_initialized():
        api.reset_peak_memory_stats(device)


def device_peak_bytes(device: torch.device) -> int | None:
    """The most bytes that PyTorch's allocator has given out on the device since the count began, weights included.

    None for the CPU, whose allocator does not count.
    """
    api: Any = None if device.type == "cpu" else torch.get_device_module(device)
    return int(api.max_memory_allocated(device)) if hasattr(api, "max_memory_allocated") else None


def give_back(device: torch.device) -> None:
    """Let the device have what nobody refers to any more."""
    gc.collect()
    api: Any = None if device.type == "cpu" else torch.get_device_module(device)
    if hasattr(api, "empty_cache"):
        api.empty_cache()
    give_back_pinned(device)


def give_back_pinned(device: torch.device) -> None:
    """Let the system have the pinned memory that nobody refers to any more, which PyTorch keeps otherwise."""
    release = getattr(torch._C, "_host_emptyCache", None)
    if device.type == "cuda" and release and torch.cuda.is_initialized():
        release()

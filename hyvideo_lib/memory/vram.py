"""How much of a device's memory there is to have."""

from __future__ import annotations

import gc
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
    unused = api.memory_reserved(device) - api.memory_allocated(device)
    return int(api.mem_get_info(device)[0]) + int(unused)


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

"""How to tell that memory ran out: PyTorch, its allocators and Python all say it in their own ways."""

from __future__ import annotations

import traceback

import torch

SAID = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "_alloc_failed",  # cuBLAS, hipBLAS, cuDNN before 9: no room for their own state
    "_allocation_failed",  # cuDNN 9
    "out_of_device_memory",  # Intel's driver
    "out_of_host_memory",
    "unable to find an engine to execute",  # cuDNN, where none of its ways has room for its workspace
)
SAID_WHEN_FULL = ("_status_not_initialized",)
"""By cuBLAS and cuDNN that found no room to begin in; by broken installations as well."""
FULL_BYTES = 512 * 2**20
"""With less free than this, a card has no room for those libraries."""
NAMED = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))  # the first is new in 2.5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the many ways to say that memory ran out."""
    if isinstance(error, NAMED):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    if any(words in text for words in SAID_WHEN_FULL):
        return _is_card_full()
    return any(words in text for words in SAID)


def _is_card_full() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.mem_get_info()[0] < FULL_BYTES


def reason_of(error: BaseException) -> str:
    """The first line of what it says."""
    return (str(error).splitlines() or ["no details"])[0]


def release(error: BaseException | None) -> None:
    """Let go of what the functions that an error came through still refer to; its message and lines stay."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__

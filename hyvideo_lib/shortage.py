"""How to tell that memory ran out: PyTorch, its allocators and Python all say it in their own ways."""

from __future__ import annotations

import traceback

import torch

SAID = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "_alloc_failed",  # cuBLAS, cuDNN, hipBLAS: no room for their own state
    "out_of_device_memory",  # Intel's driver
    "out_of_host_memory",
    "unable to find an engine to execute",  # cuDNN, where none of its ways has room for its workspace
)
NAMED = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))  # the first is new in 2.5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the many ways to say that memory ran out."""
    text = str(error).lower()
    return isinstance(error, NAMED) or (isinstance(error, RuntimeError) and any(words in text for words in SAID))


def reason_of(error: BaseException) -> str:
    """The first line of what it says."""
    return (str(error).splitlines() or ["no details"])[0]


def release(error: BaseException | None) -> None:
    """Let go of what the functions that an error came through still refer to; its message and lines stay."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__

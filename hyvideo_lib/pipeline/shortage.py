"""How to tell that memory ran out: PyTorch, its allocators and Python all say it in their own ways."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the many ways to say that memory ran out."""
    text = str(error).lower()
    said = any(words in text for words in ("out of memory", "not enough memory", "can't allocate memory"))
    is_named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_named or (isinstance(error, RuntimeError) and said)


def reason_of(error: BaseException) -> str:
    """The first line of what it says."""
    return (str(error).splitlines() or ["no details"])[0]

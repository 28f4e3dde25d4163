"""Which kind of device a tensor is on. One without numbers, on the meta device, stands for a tensor somewhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from torch import Tensor

Part = TypeVar("Part")
_STOOD_FOR: ContextVar[str] = ContextVar("stood_for", default="meta")


def device_type(tensor: Tensor) -> str:
    """Such as "cpu" or "cuda"; for a tensor on the meta device, what `meta_stands_for` says."""
    return _STOOD_FOR.get() if tensor.is_meta else tensor.device.type


def kinds(parts: Sequence[Part], like: Tensor) -> Sequence[Part]:
    """All parts of a tensor's work. Where it is without numbers, so that only the memory counts, the first two and the
    last one: those in the middle are like the second.
    """
    return (*parts[:2], *parts[2:][-1:]) if like.is_meta else parts


@contextmanager
def meta_stands_for(kind: str) -> Iterator[None]:
    """Within the block, tensors on the meta device go the way that tensors on such a device go."""
    token = _STOOD_FOR.set(kind)
    try:
        yield
    finally:
        _STOOD_FOR.reset(token)

"""Which kind of device a tensor is on. One without numbers, on the meta device, stands for a tensor somewhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_STOOD_FOR: ContextVar[str] = ContextVar("stood_for", default="meta")


def device_type(tensor: Tensor) -> str:
    """Such as "cpu" or "cuda"; for a tensor on the meta device, what `meta_stands_for` says."""
    return _STOOD_FOR.get() if tensor.is_meta else tensor.device.type


@contextmanager
def meta_stands_for(kind: str) -> Iterator[None]:
    """Within the block, tensors on the meta device go the way that tensors on such a device go."""
    token = _STOOD_FOR.set(kind)
    try:
        yield
    finally:
        _STOOD_FOR.reset(token)

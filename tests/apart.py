"""RAM for a step cache's tests: numbers lie in it with the other sign, so that one used without being fetched shows."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from hyvideo_lib.caches import StepCache


class Apart:
    """A copy_fn of a StepCache whose device is a CPU too."""

    def __init__(self) -> None:
        self._stored: list[weakref.ref[Tensor]] = []

    def __call__(self, tensor: Tensor, device: torch.device) -> Tensor:
        copied = -tensor
        if not self.has(tensor):
            self._stored.append(weakref.ref(copied))
        return copied

    def has(self, tensor: Tensor) -> bool:
        """Whether it, or what it is a part of, lies here."""
        self._stored = [ref for ref in self._stored if ref() is not None]
        place = tensor.untyped_storage().data_ptr()
        return any(ref().untyped_storage().data_ptr() == place for ref in self._stored)


def kept_by(cache: StepCache) -> Iterator[Tensor]:
    """Every tensor that is held by a cache, and by what it holds."""
    return _tensors_in(cache)


def _tensors_in(thing: object) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
        return
    parts = getattr(thing, "__dict__", thing) if type(thing).__module__.startswith("hyvideo_lib") else thing
    if isinstance(parts, (dict, list, tuple)):
        for part in parts.values() if isinstance(parts, dict) else parts:
            yield from _tensors_in(part)

"""A change of a weight, by rows, so that no more of it is made than is needed: the base of every method.

A change may look at the weight that it acts on; most do not. All LoRAs of a run look at the same weight, the stored
one, and what they add is summed up, so their order does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

BaseFn = Callable[[int, int], Tensor]
"""Rows first..last of the stored weight, [last - first, in] float32, counted as the change counts its own."""
PIECE = 2**23
"""Numbers of a change that are made at a time."""

Some = TypeVar("Some", bound="Change")


class Change:
    """What is added to a weight [rows, in]: a frozen dataclass of tensors, numbers and other changes.

    A convolution's weight counts as the matrix [out, in * kernel] that it is multiplied as.
    """

    needs_base: bool = False
    """Whether it looks at the weight."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, in)."""
        raise TypeError(f"{type(self).__name__} has no shape")

    @property
    def rank(self) -> int:
        """Multiplications that a number of it takes, where products make it."""
        return 0

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        """Rows first..last of what is added at strength 1, [last - first, in] float32."""
        raise TypeError(f"{type(self).__name__} adds nothing")

    def prepared(self: Some, base: BaseFn) -> Some:
        """The same, with all that is worked out once, of itself and of the weight."""
        return self

    def squared_norm(self) -> float | None:
        """Squared Frobenius norm of what is added; None where the file alone does not tell it, or only at length."""
        return None

    def is_zero(self) -> bool:
        """Whether it certainly adds nothing."""
        return self.squared_norm() == 0

    @property
    def numbers(self) -> int:
        """Those that it keeps on the device."""
        return sum(tensor.numel() for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All that it is made of."""
        for value in self._values().values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, Change):
                yield from value.tensors()

    def to(self: Some, device: torch.device | str) -> Some:
        """A copy on another device."""
        moved = {name: value.to(device) for name, value in self._values().items() if isinstance(value, Tensor | Change)}
        return replace(self, **moved)  # type: ignore[type-var]

    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity, and adds no number beyond all bounds as far as that is known."""
        norm = self.squared_norm()
        parts = self.tensors() if norm is None else ()
        return math.isfinite(norm or 0.0) and all(bool(part.float().isfinite().all()) for part in parts)

    def _values(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]


def spans(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    """(first, last) of parts of these rows of so many numbers each, about PIECE numbers in a part."""
    step = max(1, PIECE // max(width, 1))
    for low in range(first, last, step):
        yield low, min(low + step, last)


@dataclass(frozen=True, eq=False)
class Whole(Change):
    """A difference as it is: diff [rows, in], of any float dtype."""

    diff: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.diff.shape[0], self.diff.shape[1]

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        return self.diff[first:last].float()

    def squared_norm(self) -> float:
        return float(self.diff.double().square().sum())


@dataclass(frozen=True, eq=False)
class Around(Change):
    """A change made of another one."""

    inner: Change

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        return self.inner.needs_base

    def squared_norm(self) -> float | None:
        return self.inner.squared_norm()

    def is_zero(self) -> bool:
        return self.inner.is_zero()


@dataclass(frozen=True, eq=False)
class SwappedHalves(Around):
    """A change of a file that has the two halves of the rows the other way round."""

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        return torch.cat([self.inner.delta(low, high, self._theirs(base)) for low, high in self._spans(first, last)])

    def prepared(self, base: BaseFn) -> SwappedHalves:
        return replace(self, inner=self.inner.prepared(self._theirs(base)))

    def _theirs(self, base: BaseFn) -> BaseFn:
        """The weight as the file counts its rows."""
        return lambda first, last: torch.cat([base(low, high) for low, high in self._spans(first, last)])

    def _spans(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Where these rows are on the other side."""
        half = self.shape[0] // 2
        if first < half:
            yield first + half, min(last, half) + half
        if last > half:
            yield max(first, half) - half, last - half

"""What a LoRA adds to a layer: a product of two thin matrices, a whole difference, another method's change, a bias's.

A convolution's weight counts as the matrix [out, in * kernel] that it is multiplied as. W becomes
W + strength * scale * up @ down. Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .change import BaseFn, Change, spans


@dataclass(frozen=True, eq=False)
class LowRank(Change):
    """scale * up @ down. down [R, in], up [out, R], of any float dtype."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        return self.scale * (self.up[first:last].float() @ self.down.float())

    def product(self) -> Tensor:
        """[out, in], float32."""
        return self.scale * (self.up.float() @ self.down.float())

    def squared_norm(self) -> float:
        """Squared Frobenius norm of the product, from two matrices of R x R."""
        down, up = self.down.double(), self.up.double()
        return self.scale**2 * float(((down @ down.mT) * (up.mT @ up)).sum())


@dataclass(frozen=True, eq=False)
class Update:
    """What is added to the rows `start`..`stop` of one layer's weight, and to these elements of its bias.

    low_rank and diff [stop - start, in] are what most files hold; change: any other method's. bias_diff [stop - start].
    A norm's weight is a vector, and so is its diff [stop - start]. source: what the file calls it.
    """

    start: int
    stop: int
    low_rank: LowRank | None = None
    diff: Tensor | None = None
    bias_diff: Tensor | None = None
    source: str = ""
    change: Change | None = None

    @property
    def has_weight(self) -> bool:
        """Whether it changes the weight."""
        return self.low_rank is not None or self.diff is not None or self.change is not None

    def squared_norm(self) -> float | None:
        """Of all that is added, weight and bias together; None where the file alone does not tell."""
        total = 0.0
        for change in (self.low_rank, self.change):
            norm = change.squared_norm() if change else 0.0
            if norm is None:
                return None
            total += norm
        for part in (self.diff, self.bias_diff):
            if part is not None:
                total += float(part.double().square().sum())
        return total

    def is_zero(self) -> bool:
        """Whether it certainly adds nothing."""
        return all(change.is_zero() for change in (self.low_rank, self.change) if change) and not any(
            bool(part.any()) for part in (self.diff, self.bias_diff) if part is not None
        )

    def is_finite(self) -> bool:
        """Whether it is free of NaN and infinity."""
        return all(change.is_finite() for change in (self.low_rank, self.change) if change) and all(
            bool(part.double().square().sum().isfinite()) for part in (self.diff, self.bias_diff) if part is not None
        )

    def to_meta(self) -> Update:
        """The same sizes without numbers."""
        return replace(
            self,
            low_rank=self.low_rank and self.low_rank.to("meta"),
            diff=None if self.diff is None else self.diff.to("meta"),
            bias_diff=None if self.bias_diff is None else self.bias_diff.to("meta"),
            change=self.change and self.change.to("meta"),
        )


Weighted = tuple[Update, float]
"""An update and its strength."""


def joined_factors(updates: Sequence[Weighted], out_features: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """One product [R, in], [out, R] in `dtype` for all low-rank updates of a layer, strengths and scales in `up`.

    The rows of parts stand where they belong and are zero elsewhere, so parts that are missing add nothing. None if no
    update has a product. up is scaled in float32 and rounded once.
    """
    low = [(update, update.low_rank, strength) for update, strength in updates if update.low_rank]
    if not low:
        return None
    down = torch.cat([factors.down.to(dtype) for _, factors, _ in low])
    up = down.new_zeros(out_features, len(down))
    column = 0
    for update, factors, strength in low:
        scaled = factors.up.float() * (factors.scale * strength)
        up[update.start : update.stop, column : column + factors.rank] = scaled.to(dtype)
        column += factors.rank
    return down, up


def joined_diffs(updates: Sequence[Weighted], out_features: int, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """The whole differences of a layer's weight [out, in] and bias [out] in `dtype`, each None where there is none."""
    sums: list[Tensor | None] = []
    for name in ("diff", "bias_diff"):
        total: Tensor | None = None
        for update, strength in updates:
            part = getattr(update, name)
            if part is None:
                continue
            if total is None:
                total = torch.zeros(out_features, *part.shape[1:], device=part.device)
            total[update.start : update.stop] += part.float() * strength
        sums.append(None if total is None else total.to(dtype))
    return tuple(sums)


@dataclass(frozen=True, eq=False)
class PlacedChange:
    """A change of the rows start..stop of a layer, and its strength."""

    start: int
    stop: int
    change: Change
    strength: float

    def add_to(self, weight: Tensor, start: int, base: BaseFn) -> None:
        """Add it, in place, to the rows of a layer's weight that begin at `start`: [rows, in] of any float dtype.

        base: the stored weight of the whole layer.
        """
        own = partial(_shifted, base, self.start)
        low, high = max(self.start, start), min(self.stop, start + len(weight))
        for first, last in spans(low, high, weight.shape[1]):
            made = self.change.delta(first - self.start, last - self.start, own)
            weight[first - start : last - start].add_(made, alpha=self.strength)

    def prepared(self, base: BaseFn) -> PlacedChange:
        return replace(self, change=self.change.prepared(partial(_shifted, base, self.start)))

    def to(self, device: torch.device | str) -> PlacedChange:
        return replace(self, change=self.change.to(device))


def _shifted(base: BaseFn, start: int, first: int, last: int) -> Tensor:
    return base(first + start, last + start)


def placed_changes(updates: Sequence[Weighted]) -> list[PlacedChange]:
    """What updates hold of other methods."""
    return [
        PlacedChange(update.start, update.stop, update.change, strength)
        for update, strength in updates
        if update.change is not None
    ]


def add_updates(weight: Tensor, updates: Sequence[Weighted], base: BaseFn | None = None, start: int = 0) -> Tensor:
    """A new weight [out, ...], float32: the given one with all updates added.

    base: the whole layer's weight, of which this one has the rows from `start` on; None: it is all of it.
    """
    result = weight.float().clone()
    rows = result.view(result.shape[0], -1) if result.ndim > 1 else result
    given = weight.float().reshape(rows.shape)
    for update, strength in updates:
        part = rows[max(update.start - start, 0) : max(update.stop - start, 0)]
        own = slice(max(start - update.start, 0), max(start - update.start, 0) + len(part))
        if update.low_rank and len(part):
            part += strength * replace(update.low_rank, up=update.low_rank.up[own]).product()
        if update.diff is not None:
            part += strength * update.diff[own].float()
    for change in placed_changes(updates):
        change.add_to(rows, start, base or (lambda first, last: given[first:last]))
    return result


def add_bias_updates(bias: Tensor, updates: Sequence[Weighted], start: int = 0) -> Tensor:
    """A new bias [out], float32: the elements from `start` on of a layer's bias, with all updates added."""
    result = bias.float().clone()
    for update, strength in updates:
        if update.bias_diff is not None:
            part = result[max(update.start - start, 0) : max(update.stop - start, 0)]
            first = max(start - update.start, 0)
            part += strength * update.bias_diff[first : first + len(part)].float()
    return result

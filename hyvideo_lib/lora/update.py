"""What a LoRA adds to a layer's weight: a product of two thin matrices, a whole difference, a difference of the bias.

A convolution's weight counts as the matrix [out, in * kernel] that it is multiplied as. W becomes
W + strength * scale * up @ down. Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """scale * up @ down. down [R, in], up [out, R], of any float dtype."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self) -> Tensor:
        """[out, in], float32."""
        return self.scale * (self.up.float() @ self.down.float())

    def squared_norm(self) -> float:
        """Squared Frobenius norm of the product, from two matrices of R x R."""
        down, up = self.down.double(), self.up.double()
        return self.scale**2 * float(((down @ down.mT) * (up.mT @ up)).sum())

    def to_meta(self) -> LowRank:
        return replace(self, down=self.down.to("meta"), up=self.up.to("meta"))


@dataclass(frozen=True, eq=False)
class Update:
    """What is added to the rows `start`..`stop` of one layer's weight, and to these elements of its bias.

    diff [stop - start, in], bias_diff [stop - start]. source: what the file calls it.
    """

    start: int
    stop: int
    low_rank: LowRank | None = None
    diff: Tensor | None = None
    bias_diff: Tensor | None = None
    source: str = ""

    def squared_norm(self) -> float:
        """Of all that is added, weight and bias together."""
        total = self.low_rank.squared_norm() if self.low_rank else 0.0
        for part in (self.diff, self.bias_diff):
            if part is not None:
                total += float(part.double().square().sum())
        return total

    def to_meta(self) -> Update:
        """The same sizes without numbers."""
        return replace(
            self,
            low_rank=self.low_rank and self.low_rank.to_meta(),
            diff=None if self.diff is None else self.diff.to("meta"),
            bias_diff=None if self.bias_diff is None else self.bias_diff.to("meta"),
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


def add_updates(weight: Tensor, updates: Sequence[Weighted]) -> Tensor:
    """A new weight [out, ...], float32: the given one with all updates added."""
    result = weight.float().clone()
    rows = result.view(result.shape[0], -1)
    for update, strength in updates:
        part = rows[update.start : update.stop]
        if update.low_rank:
            part += strength * update.low_rank.product()
        if update.diff is not None:
            part += strength * update.diff.float()
    return result


def add_bias_updates(bias: Tensor, updates: Sequence[Weighted]) -> Tensor:
    """A new bias [out], float32: the given one with all updates added."""
    result = bias.float().clone()
    for update, strength in updates:
        if update.bias_diff is not None:
            result[update.start : update.stop] += strength * update.bias_diff.float()
    return result


def crop_updates(updates: Sequence[Weighted], start: int, stop: int) -> list[Weighted]:
    """What updates add to the rows start..stop of their layer, which become rows 0..stop - start."""
    cropped: list[Weighted] = []
    for update, strength in updates:
        low, high = max(update.start, start), min(update.stop, stop)
        if low >= high:
            continue
        rows = slice(low - update.start, high - update.start)
        product = update.low_rank
        part = Update(
            low - start,
            high - start,
            LowRank(product.down, product.up[rows], product.scale) if product else None,
            None if update.diff is None else update.diff[rows],
            None if update.bias_diff is None else update.bias_diff[rows],
            update.source,
        )
        cropped.append((part, strength))
    return cropped

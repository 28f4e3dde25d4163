"""What LoRAs take during a run, from sizes alone: memory on the device, and which way of adding them is less work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoint.lora_layers import LayerSize
from .update import Weighted

MANY = 4
"""Times the tokens at which both ways take the same multiplications: up to there little time is gained, and the copy of
a weight that would not be copied otherwise counts."""


@dataclass(frozen=True)
class Cost:
    """Of all updates of one layer. rank: of their products together, 0 without any.

    change_numbers: that changes of other methods keep. change_rank: multiplications for each number that these make; 0
    without any.
    """

    size: LayerSize
    rank: int
    has_diff: bool
    has_bias_diff: bool
    change_numbers: int = 0
    change_rank: int = 0

    @property
    def numbers(self) -> int:
        """That lie on the device."""
        rows, columns = self.size.out_features, self.size.in_features
        thin = self.rank * (columns + rows) + self.change_numbers
        return thin + rows * columns * self.has_diff + rows * self.has_bias_diff

    def merging_pays(self, tokens: int) -> bool:
        """Whether a weight with the updates in it takes far less than their term for so many tokens.

        W + s B A is one product of the factors, out x in x R; B (A x) is one with every token, (in + out) x R. At the
        released model's widths they meet at 1,536 to 2,688 tokens, so this begins at 6,144 to 10,752. Other methods'
        changes are made for either.
        """
        rows, columns = self.size.out_features, self.size.in_features
        is_dense = self.has_diff or self.change_rank > 0
        beside = tokens * (self.rank * (columns + rows) + rows * columns * is_dense)
        return beside >= MANY * rows * columns * (self.rank + is_dense) > 0


def cost_of(size: LayerSize, updates: Sequence[Weighted]) -> Cost:
    """What these updates of a layer of that size take."""
    changes = [update.change for update, _ in updates if update.change is not None]
    return Cost(
        size,
        sum(update.low_rank.rank for update, _ in updates if update.low_rank),
        any(update.diff is not None for update, _ in updates),
        any(update.bias_diff is not None for update, _ in updates),
        sum(change.numbers for change in changes),
        sum(max(change.rank, 1) for change in changes),
    )

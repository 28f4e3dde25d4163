"""DoRA: a change that keeps to the direction of a weight's rows, or columns, and learns their lengths apart.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation". With V = W + what the inner change adds, W becomes
magnitude * V / |V|. The lengths |V| are those of the weight that the LoRA acts on, so they are worked out when it is
there. PEFT and LyCORIS decompose rows, OneTrainer columns unless told otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .change import Around, BaseFn, Change, spans

_TINY = torch.finfo(torch.float32).eps
"""Added to lengths, as the trainers do."""


@dataclass(frozen=True, eq=False)
class Decomposed(Around):
    """inner, and the lengths that it is brought to: magnitude [rows, 1] or [1, in], of any float dtype.

    factors: magnitude over the lengths of the columns, [1, in] float32, once that is known.
    """

    magnitude: Tensor
    factors: Tensor | None = None

    needs_base = True

    @property
    def _is_by_rows(self) -> bool:
        return self.magnitude.shape[1] == 1

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        weight, turned = self._turned(first, last, base)
        if self._is_by_rows:
            factors = self.magnitude[first:last].float() / (turned.norm(dim=1, keepdim=True) + _TINY)
        else:
            factors = self._column_factors(base) if self.factors is None else self.factors
        return turned.mul_(factors).sub_(weight)

    def prepared(self, base: BaseFn) -> Decomposed:
        inner: Change = self.inner.prepared(base)
        ready = replace(self, inner=inner)
        return ready if self._is_by_rows else replace(ready, factors=ready._column_factors(base))

    def squared_norm(self) -> None:
        return None

    def is_zero(self) -> bool:
        return False

    def _turned(self, first: int, last: int, base: BaseFn) -> tuple[Tensor, Tensor]:
        """Rows of W and of V."""
        weight = base(first, last)
        return weight, weight + self.inner.delta(first, last, base)

    def _column_factors(self, base: BaseFn) -> Tensor:
        rows, width = self.shape
        squares = self.magnitude.new_zeros((1, width), dtype=torch.float32)
        for low, high in spans(0, rows, width):
            squares += self._turned(low, high, base)[1].square().sum(dim=0, keepdim=True)
        return self.magnitude.float() / (squares.sqrt() + _TINY)

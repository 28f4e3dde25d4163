"""LoHa: the product, number by number, of two low-rank products.

Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .change import BaseFn, Change


@dataclass(frozen=True, eq=False)
class Hadamard(Change):
    """scale * (up @ down) * (other_up @ other_down), the middle product number by number.

    up, other_up [rows, R]; down, other_down [R, in], of any float dtype.
    """

    up: Tensor
    down: Tensor
    other_up: Tensor
    other_down: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        return self.down.shape[0] + self.other_down.shape[0]

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        made = self.up[first:last].float() @ self.down.float()
        made.mul_(self.other_up[first:last].float() @ self.other_down.float())
        return made.mul_(self.scale)

    def is_zero(self) -> bool:
        return not self.scale or any(not bool(part.any()) for part in self.tensors())


def untucked(core: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """(up [rows, R], down [R, in * kernel]) of a Tucker form, float32.

    core [R, R, kernel...]; up [R, rows] and down [R, in], as the files have them.
    """
    return up.float().mT, torch.einsum("ij...,jr->ir...", core.float(), down.float()).flatten(1)

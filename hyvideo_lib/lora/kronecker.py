"""LoKr: the Kronecker product of two small matrices, each of which may itself be a product.

Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .change import BaseFn, Change


@dataclass(frozen=True, eq=False)
class Kronecker(Change):
    """scale * kron(left, right). left [a, b], right [c, d], of any float dtype, make [a c, b d]."""

    left: Tensor
    right: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]

    @property
    def rank(self) -> int:
        return 1

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        height = self.right.shape[0]
        top, bottom = first // height, -(-last // height)
        made = torch.kron(self.left[top:bottom].float() * self.scale, self.right.float())
        return made[first - top * height : last - top * height]

    def squared_norm(self) -> float:
        left, right = (float(part.double().square().sum()) for part in (self.left, self.right))
        return self.scale**2 * left * right

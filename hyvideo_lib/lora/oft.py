"""OFT: a weight turned by an orthogonal matrix of blocks, from Cayley's transform of skew-symmetric ones.

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning". LyCORIS and kohya turn what comes out
(`oft_blocks`), PEFT and OneTrainer what goes in (`oft_R`), by the first five terms of the transform's series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checkpoint.lora_roles import block_size_of
from .change import BaseFn, Change

_TERMS = 5
"""Of the series in PEFT and OneTrainer."""


@dataclass(frozen=True, eq=False)
class TurnedOutputs(Change):
    """W's rows turned, block by block, then scaled. blocks [K, n, n], of any float dtype.

    constraint: bound on the norm of the skew-symmetric matrices together; 0 is none. rescale [rows, 1] or None.
    turns: the orthogonal matrices [K, n, n] float32, once they are known.
    """

    blocks: Tensor
    width: int
    constraint: float = 0.0
    rescale: Tensor | None = None
    turns: Tensor | None = None

    needs_base = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape[0] * self.blocks.shape[1], self.width

    @property
    def rank(self) -> int:
        return self.blocks.shape[1]

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        size = self.blocks.shape[1]
        top, bottom = first // size, -(-last // size)
        turns = self.turns if self.turns is not None else self._turns()
        weight = base(top * size, bottom * size)
        turned = torch.einsum("knm,knp->kmp", turns[top:bottom], weight.unflatten(0, (-1, size))).flatten(0, 1)
        if self.rescale is not None:
            turned.mul_(self.rescale[top * size : bottom * size].float())
        return (turned.sub_(weight))[first - top * size : last - top * size]

    def prepared(self, base: BaseFn) -> TurnedOutputs:
        return replace(self, turns=self._turns())

    def is_zero(self) -> bool:
        is_scaled = self.rescale is not None and not bool((self.rescale == 1).all())
        return not is_scaled and not bool((self.blocks.float() - self.blocks.float().mT).any())

    def _turns(self) -> Tensor:
        skew = self.blocks.float() - self.blocks.float().mT
        if self.constraint > 0:
            skew = skew * torch.clamp(self.constraint / (skew.norm() + 1e-8), max=1.0)
        one = torch.eye(skew.shape[-1], device=skew.device)
        return torch.linalg.solve(one - skew, one + skew, left=False)


@dataclass(frozen=True, eq=False)
class TurnedInputs(Change):
    """W times a matrix of blocks. vectors [K, n (n - 1) / 2]: what stands above the diagonals, row by row.

    One vector alone serves all blocks. is_scaled: the vectors count in units of 1 / (2 sqrt(n - 1)).
    turns: the matrices [K, n, n] float32, once they are known.
    """

    vectors: Tensor
    rows: int
    width: int
    is_scaled: bool = False
    turns: Tensor | None = None

    needs_base = True

    @property
    def block_size(self) -> int:
        return block_size_of(self.vectors.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.width

    @property
    def rank(self) -> int:
        return self.block_size

    @property
    def numbers(self) -> int:
        return super().numbers if self.turns is not None else len(self.vectors) * self.block_size**2

    def delta(self, first: int, last: int, base: BaseFn) -> Tensor:
        turns = self.turns if self.turns is not None else self._turns()
        weight = base(first, last)
        parts = weight.unflatten(1, (-1, self.block_size))
        turned = torch.einsum("okc,kac->oka", parts, turns.expand(parts.shape[1], -1, -1))
        return turned.flatten(1).sub_(weight)

    def prepared(self, base: BaseFn) -> TurnedInputs:
        return replace(self, turns=self._turns())

    def is_zero(self) -> bool:
        return not bool(self.vectors.any())

    def _turns(self) -> Tensor:
        size = self.block_size
        vectors = self.vectors.float()
        if self.is_scaled:
            vectors = vectors / (2 * math.sqrt(size - 1))
        above = torch.triu_indices(size, size, 1, device=vectors.device)
        skew = vectors.new_zeros(len(vectors), size, size)
        skew[:, above[0], above[1]] = vectors
        skew = skew - skew.mT
        total = torch.eye(size, device=skew.device) + 2 * skew
        power = skew
        for _ in range(2, _TERMS - 1):
            power = power @ skew
            total = total + 2 * power
        return total + power @ skew

"""A Linear whose weight lies in several tensors, one below the other, as layouts with separate q, k and v have it.

Joined once and for all it would be a copy of two thirds of the model in memory. The parts stay where they are, and are
joined when the layer is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..transformer.ops import Linear


class JoinedLinear(Linear):
    """A Linear whose rows are those of `parts`, Linears without bias; each may have a storage of its own.

    It has no `weight`; its state dict has `parts.0.weight`, `parts.1.weight`, ... and `bias`.
    """

    def __init__(self, in_features: int, rows: Sequence[int], bias: bool = True) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = in_features, sum(rows)
        self.parts = nn.ModuleList(Linear(in_features, count, bias=False) for count in rows)
        self.register_parameter("bias", nn.Parameter(torch.empty(self.out_features)) if bias else None)

    def dense_weight(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        first, last, _ = rows.indices(self.out_features)
        pieces, start = [], 0
        for part in self.parts:
            assert isinstance(part, Linear)
            low, high = max(first - start, 0), min(last - start, part.out_features)
            if low < high:
                pieces.append(part.dense_weight(dtype, slice(low, high)))
            start += part.out_features
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def join_linear(model: nn.Module, path: str, rows: Sequence[int]) -> None:
    """Replace a Linear of a model on the meta device by one of parts with so many rows each."""
    parent, _, leaf = path.rpartition(".")
    old = model.get_submodule(path)
    if not isinstance(old, Linear):
        raise TypeError(f"{path} is a {type(old).__name__}, not a Linear; only those are joined.")
    with torch.device("meta"):
        new = JoinedLinear(old.in_features, rows, old.bias is not None)
    setattr(model.get_submodule(parent), leaf, new.requires_grad_(False))

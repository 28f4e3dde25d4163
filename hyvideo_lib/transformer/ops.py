"""Layers with weights, which may rest in another dtype than they compute in.

The transformer takes its layers from a namespace like this module, so that a host can supply its own. These cast the
weight to the input's dtype when it is used: 8-bit storage computes in 16 or 32 bit, and equals dequantise-then-compute
by definition. A weight already in the right dtype is used as it lies, without a copy.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Ops(Protocol):
    """What a namespace of layers offers. Its Linear takes `rows`, a slice of the output features, as ours does."""

    @property
    def Linear(self) -> type[Linear]: ...  # noqa: N802

    @property
    def Conv3d(self) -> type[nn.Conv3d]: ...  # noqa: N802


class Linear(nn.Linear):
    """nn.Linear whose weight is cast on use. `rows` computes only those output features."""

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        bias = None if self.bias is None else self.bias[rows].to(x.dtype)
        return F.linear(x, self.weight[rows].to(x.dtype), bias)


class Conv3d(nn.Conv3d):
    """nn.Conv3d whose weight is cast on use."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

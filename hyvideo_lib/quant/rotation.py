"""The rotation that some int8 files turn their weights by before they round them (ConvRot): it spreads outliers.

Each row is cut into groups, and each group is multiplied with a regular Hadamard matrix: the Kronecker power of a
symmetric 4 x 4 matrix of ones that has one -1 in each row, over the root of its size. The matrix is symmetric and
orthogonal, so the same rotation undoes itself, and tokens rotated alike times the rotated weight are the same product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST_GROUP = 4**8
PIECE = 2**22  # numbers rotated at a time: it takes a few times their bytes in float32


def is_group_size(value: Any) -> bool:
    """Whether a regular Hadamard matrix of this size can be built so: a power of four, from 4 on."""
    return (
        type(value) is int and 4 <= value <= LARGEST_GROUP and value & (value - 1) == 0 and value.bit_length() % 2 == 1
    )


def rotate(rows: Tensor, group: int) -> Tensor:
    """rows [..., width] with each group of `group` neighbours rotated, in float32. width: a multiple of group.

    Twice gives the rows back, but for rounding.
    """
    shape, rows, step = rows.shape, rows.float(), 1
    while step < group:
        fours = rows.reshape(-1, 4, step)
        # (a, b, c, d) times the matrix: half their sum, less the one that stands opposite
        rows = fours.sum(dim=1, keepdim=True).div_(2) - fours.flip(1)
        step *= 4
    return rows.reshape(shape)


def dequantize_rotated(weight: Tensor, scale: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """The weight that a rotated layer of int8 numbers stands for, in `dtype`: defined in float32 and rounded once.

    weight: [..., in]. scale: [1], or [..., 1] with one for each row.
    """
    rows = weight.reshape(-1, weight.shape[-1])
    scale = scale.float().reshape(-1, 1)
    dense = torch.empty(rows.shape, dtype=dtype, device=weight.device)
    step = max(1, PIECE // max(1, rows.shape[1]))
    for low in range(0, len(rows), step):
        part = slice(low, low + step)
        dense[part] = rotate(rows[part].float() * (scale if len(scale) == 1 else scale[part]), group)
    return dense.view(weight.shape)

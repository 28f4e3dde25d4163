"""The one attention function: exact softmax attention over the valid tokens of each batch item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .sdpa import sdpa

PER_ITEM_TOKENS = 2048
"""From this length on, items of unequal length run one by one: a mask would rule out the fast kernels."""


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for [B, N, L, D]; every token sees all valid tokens of its own item.

    lengths: valid tokens per item, at the front; None if all are. What rows past an item's length hold is finite and
    otherwise unspecified.
    """
    longest = q.shape[2]
    if lengths is None or all(length == longest for length in lengths):
        return sdpa(q, k, v)
    if longest >= PER_ITEM_TOKENS:
        out = torch.zeros_like(v)
        for i, n in enumerate(lengths):
            out[i : i + 1, :, :n] = sdpa(q[i : i + 1, :, :n], k[i : i + 1, :, :n], v[i : i + 1, :, :n])
        return out
    valid = torch.arange(longest, device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
    return sdpa(q, k, v, mask=valid[:, None, None, :])

"""The plain answer: PyTorch's scaled dot product attention, which picks its own kernel.

On NVIDIA cards older than the RTX 30 series PyTorch has no fused kernel for bfloat16, and the unfused way forms the
whole table of scores, which for a video fits nowhere. There a few heads at a time attend in float32, whose fused kernel
every card has: no less exact, and little memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, Kernel

FUSED_BFLOAT16 = (8, 0)
"""Compute capability from which on PyTorch's fused kernels take bfloat16."""
FLOAT32_BYTES = 2**27
"""Of queries, keys, values and result in float32 that exist at once, but for at least one head of one item: 244 MB at
119,000 tokens, for which the memory that a run keeps free suffices."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, N, L, D] each; mask: bool, broadcast to [B, N, L, L], True where a key may be seen."""
    if is_unfused(q.device, q.dtype):
        return sdpa_in_float32(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def is_unfused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch would form the table of scores there. AMD's cards, which are "cuda" too, have other rules."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) < FUSED_BFLOAT16


def sdpa_in_float32(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same as `sdpa`, a few heads of an item at a time, rounded to the dtype of q once."""
    count = max(1, FLOAT32_BYTES // (2 * 4 * (q[0, 0].numel() + k[0, 0].numel())))
    seen = None if mask is None else mask.expand(*q.shape[:2], *mask.shape[-2:])
    out = torch.empty_like(q)
    for item in range(q.shape[0]):
        for first in range(0, q.shape[1], count):
            at = slice(item, item + 1), slice(first, first + count)
            of_these = None if seen is None else seen[at]
            out[at] = F.scaled_dot_product_attention(q[at].float(), k[at].float(), v[at].float(), of_these)
    return out


def load() -> Kernel:
    return sdpa


SDPA = Backend("sdpa", load, "It comes with PyTorch.")

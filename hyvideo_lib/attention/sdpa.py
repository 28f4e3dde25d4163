"""The plain answer: PyTorch's scaled dot product attention, which picks its own kernel.

Where PyTorch has no fused kernel, its unfused way forms the whole table of scores, which for a video fits nowhere. On
NVIDIA cards older than the RTX 30 series that is so for bfloat16: there a few heads at a time attend in float32, whose
fused kernel every card has. On AMD cards that PyTorch's kernels are not made for it is so for everything: there a few
queries at a time attend, in float32 too. Both are no less exact, and take little memory.
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
119,000 tokens, for which the memory that a run keeps free suffices. Of scores alike."""
CHECKS = ("can_use_flash_attention", "can_use_efficient_attention")


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, N, L, D] each; mask: bool, broadcast to [B, N, L, L], True where a key may be seen."""
    if is_unfused(q.device, q.dtype):
        return sdpa_in_float32(q, k, v, mask)
    if q.device.type == "cuda" and torch.version.hip and not has_kernel(q, k, v, mask):
        return sdpa_in_rows(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def is_unfused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch would form the table of scores there for the dtype alone. AMD's cards, which are "cuda" too, have
    other rules."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) < FUSED_BFLOAT16


def has_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> bool:
    """Whether PyTorch says that it has a fused kernel for these; True where it does not answer."""
    cuda = torch.backends.cuda
    try:
        asked = cuda.SDPAParams(q, k, v, mask, 0.0, False, False)  # no dropout, all tokens, as many heads of each
    except (AttributeError, TypeError):  # before PyTorch 2.5
        return True
    return any(getattr(cuda, check)(asked) for check in CHECKS)


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


def sdpa_in_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same as `sdpa`, of one head at a time as many queries as there is room for their scores, without any kernel.

    Products and sums are in float32, and the result is rounded to the dtype of q once.
    """
    count = max(1, FLOAT32_BYTES // (2 * 4 * k.shape[2]))  # scores, and what becomes of them
    seen = None if mask is None else mask.expand(*q.shape[:3], k.shape[2])
    out = torch.empty_like(q)
    for item in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = k[item, head].float(), v[item, head].float()
            for first in range(0, q.shape[2], count):
                rows = slice(first, first + count)
                scores = (q[item, head, rows].float() * q.shape[-1] ** -0.5) @ keys.T
                if seen is not None:
                    scores.masked_fill_(~seen[item, head, rows], float("-inf"))
                out[item, head, rows] = scores.softmax(-1) @ values
    return out


def load() -> Kernel:
    return sdpa


SDPA = Backend("sdpa", load, "It comes with PyTorch.")

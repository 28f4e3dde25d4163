"""The plain answer: PyTorch's scaled dot product attention, which picks its own kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, Kernel


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, N, L, D] each; mask: bool, broadcast to [B, N, L, L], True where a key may be seen."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def load() -> Kernel:
    return sdpa


SDPA = Backend("sdpa", load, "It comes with PyTorch.")

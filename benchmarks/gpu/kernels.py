"""PyTorch's own kernels of attention by name, one of which can be had for both sides of a comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

NAMES = {
    "sdpa flash": "FLASH_ATTENTION",
    "sdpa cudnn": "CUDNN_ATTENTION",
    "sdpa efficient": "EFFICIENT_ATTENTION",
    "sdpa math": "MATH",
}
KERNELS: dict[str, SDPBackend] = {
    name: getattr(SDPBackend, theirs) for name, theirs in NAMES.items() if hasattr(SDPBackend, theirs)
}
ALIKE = ("sdpa flash", "sdpa efficient", "sdpa math")
"""What both sides of a comparison get: the first of these that runs. Flash takes no mask, cuDNN is not everywhere."""
TRIED_TOKENS = 64


def shared_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The name of the kernel for both sides on this device."""
    return next(name for name in ALIKE if runs(name, device, dtype, head_dim))


def runs(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel takes queries, keys and values without a mask there."""
    q = torch.zeros(1, 1, TRIED_TOKENS, head_dim, device=device, dtype=dtype)
    try:
        with sdpa_kernel(KERNELS[name]):
            F.scaled_dot_product_attention(q, q, q)
    except RuntimeError:
        return False
    return True

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
"""What is tried in place of PyTorch's own choice, where that is not told."""
TRIED_TOKENS = 1024


def shared_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The name of the kernel for both sides on this device: the one that PyTorch takes by itself, as the product does.

    So figures of tables that name a kernel and of those that do not are of one. It is asked without a mask.
    """
    choose = getattr(torch, "_fused_sdp_choice", None)
    q = torch.zeros(1, 1, TRIED_TOKENS, head_dim, device=device, dtype=dtype)
    by_number = {int(backend): name for name, backend in KERNELS.items()}
    chosen = by_number.get(int(choose(q, q, q))) if choose else None
    return next(name for name in (chosen, *ALIKE) if name and runs(name, device, dtype, head_dim))


def warm_up(device: torch.device, dtype: torch.dtype, num_heads: int, tokens: int, head_dim: int) -> None:
    """Attend once over so many tokens, laid out in both ways that transformers do.

    cuDNN makes a plan for every new length, which takes a good part of a second and is no part of a step.
    """
    for shape in ((1, num_heads, tokens, head_dim), (1, tokens, num_heads, head_dim)):
        q = torch.zeros(shape, device=device, dtype=dtype)
        q = q if shape[1] == num_heads else q.transpose(1, 2)
        F.scaled_dot_product_attention(q, q, q)


def runs(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel takes queries, keys and values without a mask there."""
    q = torch.zeros(1, 1, TRIED_TOKENS, head_dim, device=device, dtype=dtype)
    try:
        with sdpa_kernel(KERNELS[name]):
            F.scaled_dot_product_attention(q, q, q)
    except RuntimeError:
        return False
    return True

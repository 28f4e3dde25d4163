"""Whether a backend can be used: it is there, runs on the device with heads of this size, and is right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from .backend import Backend
from .sdpa import sdpa

MIN_COSINE = 0.999
"""Between a backend's result and PyTorch's. Kernels in 8 bits reach it; a wrong scale, mask or order does not."""
HEADS, TOKENS = 2, 333
"""Of the problem that is tried; the number of tokens is no multiple of any kernel's block."""


@dataclass(frozen=True)
class Verdict:
    """reason: why a backend cannot be used; empty if it can. is_missing: because it is not installed."""

    reason: str = ""
    is_missing: bool = False

    def __bool__(self) -> bool:
        return not self.reason


@cache
@torch.no_grad()
def probe(backend: Backend, device: torch.device, head_dim: int, dtype: torch.dtype) -> Verdict:
    """Try a backend on a small random problem. The answer is kept as long as the process lives."""
    try:
        kernel = backend.load_fn()
    except Exception as error:  # a package that is built for another PyTorch may raise anything
        is_missing = isinstance(error, ModuleNotFoundError)
        return Verdict("is not installed" if is_missing else f"cannot be loaded ({_first_line(error)})", is_missing)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, TOKENS, head_dim, generator=generator).to(device, dtype)
    expected = sdpa(q, k, v).double().flatten()
    try:
        found = kernel(q, k, v)
        shape = tuple(found.shape)
        cosine = torch.cosine_similarity(found.double().flatten(), expected, dim=0).item() if shape == q.shape else None
    except Exception as error:  # what a kernel raises for a card, dtype or size that it does not know is its own affair
        name = str(dtype).removeprefix("torch.")
        return Verdict(f"does not run on {device} in {name} with heads of {head_dim} ({_first_line(error)})")
    if cosine is None:
        return Verdict(f"returns a tensor of {list(shape)} in place of {list(q.shape)}")
    if not cosine >= MIN_COSINE:
        return Verdict(f"gives wrong numbers (cosine to PyTorch's {cosine:.4f}, needed {MIN_COSINE})")
    return Verdict()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__

"""Whether a backend can be used: it is there, runs on the device with heads of this size, and is right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ..device import on_device
from ..shortage import is_out_of_memory
from .backend import Backend
from .sdpa import sdpa

MIN_COSINE = 0.999
"""Between a backend's result and PyTorch's. Kernels in 8 bits reach it; a wrong scale, mask or order does not."""
MAX_STRETCH = 0.05
"""How much longer or shorter the result may be, which the cosine does not see. Kernels that count the padding of their
last block as tokens shorten it: SageAttention 1.0.6 by 14 % at 100 tokens (measured), by 0.1 % at most at 100,000
(computed)."""
HEADS, TRIED_TOKENS, MORE_TOKENS = 2, 31 * 64 + 1, 7
"""Of the problem that is tried, where none is given: nearly all of a kernel's last block is padding. MORE_TOKENS lie
behind each head's, and are none of it."""
UNSUPPORTED = (NotImplementedError, TypeError, ValueError, AssertionError)
"""How kernels refuse a card, a dtype or a size that they do not know. What else they raise may pass, as the failure of
a compiler behind them does where a disk is full, so they are tried again the next time."""


@dataclass(frozen=True)
class Verdict:
    """reason: why a backend cannot be used; empty if it can. is_missing: because it is not installed. is_short: because
    there was no memory to try it, which says nothing of the next time."""

    reason: str = ""
    is_missing: bool = False
    is_short: bool = False

    def __bool__(self) -> bool:
        return not self.reason


def probe(
    backend: Backend, device: torch.device, head_dim: int, dtype: torch.dtype, tokens: int = TRIED_TOKENS
) -> Verdict:
    """Try a backend on a small random problem. The answer is kept as long as the process lives, unless what is in the
    way may pass.

    tokens: of the run, as kernels may be wrong for few; of many, TRIED_TOKENS are tried.
    """
    try:
        with on_device(device):
            return judge(backend, device, head_dim, dtype, tokens)
    except Exception as error:  # what a package raises for a card or PyTorch that it is not made for is its own affair
        if is_out_of_memory(error):
            return Verdict(f"cannot be tried on {device}, as memory ran out ({_first_line(error)})", is_short=True)
        return _does_not_run(error, device, head_dim, dtype)


@cache
@torch.no_grad()
def judge(backend: Backend, device: torch.device, head_dim: int, dtype: torch.dtype, tokens: int) -> Verdict:
    """The answer that is kept. Raises what may pass."""
    try:
        kernel = backend.load_fn()
    except ImportError as error:
        missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else None
        is_missing = missing is not None and missing in (backend.package, "")
        return Verdict("is not installed" if is_missing else f"cannot be loaded ({_first_line(error)})", is_missing)
    generator = torch.Generator().manual_seed(0)
    longer = torch.randn(3, 1, HEADS, tokens + MORE_TOKENS, head_dim, generator=generator)
    q, k, v = longer.to(device, dtype)[..., :tokens, :]  # as a batch item with fewer tokens lies in its buffer
    expected = sdpa(q, k, v).double().flatten()
    cosine = stretch = None
    try:
        found = kernel(q, k, v)
        shape = tuple(found.shape)
        if shape == q.shape:
            result = found.double().flatten()
            cosine = torch.cosine_similarity(result, expected, dim=0).item()
            stretch = (result.norm() / expected.norm()).item()
    except UNSUPPORTED as error:
        return _does_not_run(error, device, head_dim, dtype)
    if cosine is None or stretch is None:
        return Verdict(f"returns a tensor of {list(shape)} in place of {list(q.shape)}")
    if not cosine >= MIN_COSINE:
        return Verdict(f"gives wrong numbers (cosine to PyTorch's {cosine:.4f}, needed {MIN_COSINE})")
    if not abs(stretch - 1) <= MAX_STRETCH:
        return Verdict(f"gives wrong numbers for {tokens} tokens ({stretch:.2f} times as large as PyTorch's)")
    return Verdict()


def _does_not_run(error: Exception, device: torch.device, head_dim: int, dtype: torch.dtype) -> Verdict:
    name = str(dtype).removeprefix("torch.")
    return Verdict(f"does not run on {device} in {name} with heads of {head_dim} ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__

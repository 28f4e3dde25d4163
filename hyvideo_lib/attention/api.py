"""The one attention function: softmax attention over the valid tokens of each batch item, by a kernel of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .backend import Backend, Kernel
from .flash import FLASH_2, FLASH_3
from .kitchen import KITCHEN
from .sage import SAGE
from .sdpa import SDPA, sdpa
from .xformers import XFORMERS

AUTO = "auto"
"""The fastest exact backend of those that work."""
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (SDPA, FLASH_2, FLASH_3, SAGE, XFORMERS, KITCHEN)}


class AttendFn(Protocol):
    """`attend`, or the same with another kernel."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Sequence[int] | None = None,
        *,
        into: Tensor | None = None,
    ) -> Tensor: ...


PER_ITEM_TOKENS = 2048
"""From this length on, items of unequal length run one by one: a mask would rule out the fast kernels."""


def register(backend: Backend) -> None:
    """Add a backend that a host brings along to the table; one of the same name is replaced."""
    BACKENDS[backend.name] = backend


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int] | None = None,
    kernel: Kernel = sdpa,
    *,
    into: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for [B, N, L, D]; every token sees all valid tokens of its own item.

    lengths: valid tokens per item, at the front; None if all are. What rows past an item's length hold is finite and
    otherwise unspecified. Kernels but PyTorch's take no mask: with them, unequal items always run one by one.
    into: where the results of items that run one by one are put, else a new tensor; q itself, if it is given up, so
    that unequal items take no more memory than equal ones.
    """
    longest = q.shape[2]
    if lengths is None or all(length == longest for length in lengths):
        return kernel(q, k, v)
    if longest >= PER_ITEM_TOKENS or kernel is not sdpa:
        out = torch.zeros_like(v) if into is None else into
        for i, n in enumerate(lengths):
            out[i : i + 1, :, :n] = kernel(q[i : i + 1, :, :n], k[i : i + 1, :, :n], v[i : i + 1, :, :n])
        return out
    valid = torch.arange(longest, device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
    return sdpa(q, k, v, mask=valid[:, None, None, :])

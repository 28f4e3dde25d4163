"""How far tensors have moved: mean absolute differences, item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK_TOKENS = 2048
"""Tokens compared at once: bounds the float32 temporaries, and what comes back from RAM for them."""

FetchFn = Callable[[Tensor, torch.device], Tensor]


def chunks(length: int) -> Iterator[slice]:
    """So many tokens, CHUNK_TOKENS at a time."""
    return (slice(low, low + CHUNK_TOKENS) for low in range(0, length, CHUNK_TOKENS))


def mean_change(now: Tensor, before: Tensor, fetch: FetchFn = torch.Tensor.to) -> tuple[list[float], list[float]]:
    """Mean |now - before| and mean |before| of each item of [B, L, ...], in float32. fetch: brings parts of before."""
    changes = torch.zeros(len(now), device=now.device)
    sizes = torch.zeros_like(changes)
    for rows in chunks(now.shape[1]):
        old = fetch(before[:, rows], now.device).float()
        changes += (now[:, rows].float() - old).abs().flatten(1).sum(1)
        sizes += old.abs().flatten(1).sum(1)
    numbers = torch.stack([changes, sizes]) / max(1, now[0].numel())
    first, second = numbers.tolist()  # one wait for the device
    return first, second


def relative_change(now: Tensor, before: Tensor, fetch: FetchFn = torch.Tensor.to) -> list[float]:
    """Mean |now - before| over mean |before| of each item; infinite where there was nothing before."""
    return [ratio(change, size) for change, size in zip(*mean_change(now, before, fetch), strict=True)]


def ratio(part: float, whole: float) -> float:
    """part / whole; infinite for a whole of 0."""
    return part / whole if whole else float("inf")

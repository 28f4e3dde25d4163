"""Shift, scale and gate: how timestep, guidance and pooled text act on every block.

The modulating numbers depend on the conditioning vectors alone, not on the tokens. With a clean first frame (I2V token
replace) the first frame's tokens take theirs from another vector, so modulation comes in spans of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import Ops

NORM_EPS = 1e-6

Mods = tuple[Tensor, ...]
"""Shift, scale and gate vectors, [B, 1, D] each, in the order of the checkpoint."""


@dataclass(frozen=True)
class Condition:
    """vec [B, D] modulates all tokens, but the first `num_first` (of the image) take first_vec where it is given.

    vectors_fn: where a modulation's vectors come from; None is the modulation itself.
    """

    vec: Tensor
    first_vec: Tensor | None = None
    num_first: int = 0
    vectors_fn: Callable[[nn.Module, Tensor], Mods] | None = None

    def rest(self) -> Condition:
        """The same without a first frame: for tokens that are no image."""
        return replace(self, first_vec=None, num_first=0)


Spans = list[tuple[int, int | None, Mods]]
"""(start, end, mods): which tokens take which vectors."""


class Modulation(nn.Module):
    """Linear(silu(vec)), cut into `count` vectors."""

    def __init__(self, hidden_size: int, count: int, ops: Ops) -> None:
        super().__init__()
        self.count = count
        self.linear = ops.Linear(hidden_size, count * hidden_size)

    def vectors(self, vec: Tensor) -> Mods:
        return self.linear(F.silu(vec)).unsqueeze(1).chunk(self.count, dim=-1)

    def forward(self, condition: Condition) -> Spans:
        vectors_fn = condition.vectors_fn or Modulation.vectors
        mods = vectors_fn(self, condition.vec)
        if condition.first_vec is None:
            return [(0, None, mods)]
        return [(0, condition.num_first, vectors_fn(self, condition.first_vec)), (condition.num_first, None, mods)]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift for [B, L, D].

    Normalised and modulated in float32 and rounded once, to x's dtype, as under the reference's autocast.
    """
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift.float(), normed, 1 + scale.float()).to(x.dtype)


def modulate_spans(x: Tensor, spans: Spans, shift: int, scale: int) -> Tensor:
    """`modulate` with the vectors number `shift` and `scale` of every span."""
    parts = [modulate(x[:, start:end], mods[shift], mods[scale]) for start, end, mods in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def gate_spans(y: Tensor, spans: Spans, gate: int) -> Tensor:
    """gate * y with the vector number `gate` of every span."""
    parts = [mods[gate] * y[:, start:end] for start, end, mods in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def clip_spans(spans: Spans, start: int, end: int) -> Spans:
    """The spans of the tokens start..end, counted from start."""
    clipped: Spans = []
    for first, last, mods in spans:
        low, high = max(first, start), min(end if last is None else last, end)
        if low < high:
            clipped.append((low - start, high - start, mods))
    return clipped

"""What lies between a lean block's matrix products and its attention: pure functions of a chunk of tokens.

They hold no weights but a head norm's gain, so that one compiled form of each serves all blocks, whatever their weights
are stored as, wherever they rest, and whichever LoRAs act. `compiling.py` makes the compiled forms, which see one item
at a time: the batch axis may be missing throughout. `add_gated` and `gelu` are one kernel as they are, and in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .modulation import NORM_EPS, modulate


def turn_heads(x: Tensor, gain: Tensor, rotation: Tensor | None) -> Tensor:
    """Head norm of x [B, n, N, D] and its rotation by [n, D/2, 2] (cosine, sine); None turns nothing.

    As blocks.RMSNorm and rope.apply_rope one after the other, but that the rotated is returned in float32.
    """
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPS).to(x.dtype) * gain.to(x.dtype)
    if rotation is None:
        return normed
    pairs = normed.float().unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():
        turned = torch.view_as_complex(pairs).mul_(torch.view_as_complex(rotation)[:, None])
        return torch.view_as_real(turned).flatten(-2)
    # Compilers know no complex numbers.
    even, odd = pairs.unbind(-1)
    cos, sin = rotation[:, None].unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> None:
    """x += gate * y, in place."""
    x.addcmul_(gate, y)


def gelu(x: Tensor) -> Tensor:
    """GELU (tanh) of what nobody else needs."""
    if torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return torch.ops.aten.gelu_(x, approximate="tanh")


def join_gelu(attended: Tensor, hidden: Tensor) -> Tensor:
    """[attended, gelu(hidden)] along the last axis."""
    return torch.cat([attended, gelu(hidden)], dim=-1)


@dataclass(frozen=True)
class Pieces:
    """Those of the functions above that take several passes over memory, as they are or compiled."""

    modulate: Callable[[Tensor, Tensor, Tensor], Tensor] = modulate
    turn_heads: Callable[[Tensor, Tensor, Tensor | None], Tensor] = turn_heads
    join_gelu: Callable[[Tensor, Tensor], Tensor] = join_gelu


PLAIN = Pieces()

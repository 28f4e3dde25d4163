"""What a block does to a chunk of tokens before its attention, and after it: all of a lean block but attention itself.

Results go where the caller says: into the query, key and value buffers, or into the residual stream. Each is one
function of a kind of block, so that one compiled form serves all blocks of that kind (`compiling.py`). The batch axis
may be missing throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .ops import ReadyLinear
from .pieces import PLAIN, Pieces, add_gated, gelu


def before_attention(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    linears: Sequence[ReadyLinear],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    rotation: Tensor | None,
    do: Pieces = PLAIN,
) -> None:
    """Queries, keys and values of x [B, n, D], stored in q, k, v [B, n, N, d].

    linears: what makes q, k, v, one after the other, or all three in one. q_gain, k_gain [d]: of the head norms.
    rotation [n, d/2, 2] (cosine, sine): turns queries and keys; None for text.
    """
    made = _apply_all(linears, do.modulate(x, shift, scale))
    parts = [part for each in made for part in each.unflatten(-1, (-1, *q.shape[-2:])).unbind(-3)]
    q.copy_(do.turn_heads(parts[0], q_gain, rotation))
    k.copy_(do.turn_heads(parts[1], k_gain, rotation))
    v.copy_(parts[2])


def _apply_all(linears: Sequence[ReadyLinear], x: Tensor) -> list[Tensor]:
    """Apart, so that x is given up as soon as the products are there."""
    return [linear(x) for linear in linears]


def after_double(
    x: Tensor,
    attended: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    mlp_gate: Tensor,
    project: ReadyLinear,
    grow: ReadyLinear,
    shrink: ReadyLinear,
    do: Pieces = PLAIN,
) -> None:
    """x += gate * project(attended), then x += mlp_gate * MLP(modulated x), for one stream of a double block."""
    add_gated(x, project(attended), gate)
    add_gated(x, shrink(gelu(grow(do.modulate(x, shift, scale)))), mlp_gate)


def after_single(
    x: Tensor,
    attended: Tensor,
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    grow: ReadyLinear,
    shrink: ReadyLinear,
    do: Pieces = PLAIN,
) -> None:
    """x += gate * shrink([attended, gelu(grow(modulated x))])."""
    add_gated(x, shrink(do.join_gelu(attended, grow(do.modulate(x, shift, scale)))), gate)


@dataclass(frozen=True, eq=False)
class Chunks:
    """The functions above, as they are or compiled."""

    before_attention: Callable[..., None] = before_attention
    after_double: Callable[..., None] = after_double
    after_single: Callable[..., None] = after_single


def with_pieces(pieces: Pieces) -> Chunks:
    """As they are, but for the pieces that they are made of."""
    return Chunks(*(partial(fn, do=pieces) for fn in (before_attention, after_double, after_single)))


AS_THEY_ARE = Chunks()

"""The blocks again, with a few token-wide buffers in place of about eighteen. Equal to `blocks.py` within rounding.

Everything but attention works on tokens one by one, so it is done a chunk of tokens at a time: norm, modulation,
projection, head norm and rotation write a chunk straight into the query, key and value buffers, and the way back
(projection, gate, MLP) adds a chunk straight into the residual stream. Between the two only q, k, v and the attention's
result are as long as the video. Heads do not see each other, so they can attend in groups, and then q, k and v are of
one group only; the modulated input is made anew for each. The streams are overwritten; gradients are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar, cast

import torch
from torch import Tensor

from ..attention import AttendFn, attend
from .blocks import MLP, DoubleBlock, RMSNorm, SingleBlock
from .chunks import AS_THEY_ARE, Chunks
from .lean_config import LeanConfig
from .modulation import Condition, Mods, Spans, clip_spans, modulate
from .ops import Linear, ReadyLinear
from .rope import RotationTables


@dataclass(frozen=True, eq=False)
class Form:
    """How the lean blocks go about it: in chunks of what size, by which attention, and what is done to a chunk."""

    config: LeanConfig = LeanConfig()  # noqa: RUF009 (frozen)
    attend_fn: AttendFn = attend
    chunks: Chunks = AS_THEY_ARE


DEFAULT = Form()
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Stream:
    """Tokens x [B, L, D] that share weights on their way into attention, from `offset` on in the joint sequence.

    turn: what rotates their queries and keys; None for text.
    """

    x: Tensor
    offset: int
    spans: Spans
    linear: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm
    turn: RotationTables | None


class Joint:
    """Query, key and value buffers [B, n, L, D] of the heads first..last of the joint sequence, filled in chunks."""

    def __init__(self, like: Tensor, length: int, num_heads: int, first: int, last: int) -> None:
        batch, self._width = like.shape[0], like.shape[-1] // num_heads
        self._count = last - first
        starts = [(part * num_heads + first) * self._width for part in range(3)]
        self._rows = [slice(start, start + self._count * self._width) for start in starts]
        if self._count == num_heads:
            self._rows = [slice(0, 3 * num_heads * self._width)]  # one product instead of three
        self.q, self.k, self.v = (like.new_empty(batch, self._count, length, self._width) for _ in range(3))

    def fill(self, streams: Sequence[Stream], form: Form) -> None:
        """Make and store the tokens of streams.

        What weights are multiplied as is made once for all chunks, and once for streams that share them.
        """
        for _, sharing in groupby(streams, lambda stream: id(stream.linear)):
            linears: list[ReadyLinear] = []
            for stream in sharing:
                linears = linears or [stream.linear.ready(stream.x, rows) for rows in self._rows]
                self._fill(stream, linears, form)
            del linears  # before the other stream's are made

    def _fill(self, stream: Stream, linears: Sequence[ReadyLinear], form: Form) -> None:
        gains = stream.q_norm.gain(), stream.k_norm.gain()
        for low, high, mods in pieces(stream.x, stream.spans, form.config):
            rotation = None if stream.turn is None else torch.view_as_real(stream.turn.rows(low, high))
            at = slice(stream.offset + low, stream.offset + high)
            stores = (buffer[:, :, at].transpose(1, 2) for buffer in (self.q, self.k, self.v))
            form.chunks.before_attention(stream.x[:, low:high], mods[0], mods[1], linears, *stores, *gains, rotation)

    def attend(self, lengths: Sequence[int] | None, attend_fn: AttendFn) -> Tensor:
        """[B, L, n, D]; the buffers are given up."""
        q, k, v = self.q, self.k, self.v
        del self.q, self.k, self.v
        return attend_fn(q, k, v, lengths, into=q).transpose(1, 2)


def attend_streams(streams: Sequence[Stream], num_heads: int, lengths: Sequence[int] | None, form: Form) -> Tensor:
    """Attention among all streams, [B, L, N D], by groups of heads."""
    like = streams[0].x
    length = sum(stream.x.shape[1] for stream in streams)
    groups = list(head_groups(num_heads, form.config.head_groups))
    if len(groups) > 1:
        out = like.new_empty(len(like), length, num_heads, like.shape[-1] // num_heads)
    for first, last in _telling(groups) if like.is_meta else groups:
        joint = Joint(like, length, num_heads, first, last)
        joint.fill(streams, form)
        if len(groups) == 1:
            out = joint.attend(lengths, form.attend_fn)
        else:
            out[:, :, first:last] = joint.attend(lengths, form.attend_fn)
    return out.flatten(2)


def head_groups(num_heads: int, count: int) -> Iterator[tuple[int, int]]:
    """(first, last) of `count` groups of heads, as equal as they can be; never more groups than heads."""
    count = min(count, num_heads)
    for i in range(count):
        yield num_heads * i // count, num_heads * (i + 1) // count


def _telling(parts: Sequence[T]) -> Sequence[T]:
    """The first and the last: without numbers (on the meta device) only the memory counts, and those tell all of it."""
    return (*parts[:1], *parts[1:][-1:])


def pieces(x: Tensor, spans: Spans, config: LeanConfig) -> Iterator[tuple[int, int, Mods]]:
    """(low, high, mods): chunks of x's tokens in order, each within one span."""
    length = x.shape[1]
    size = config.chunk_size(length)
    for start, end, mods in spans:
        last = length if end is None else min(end, length)
        lows = range(start, last, size)
        for low in _telling(lows) if x.is_meta else lows:
            yield low, min(low + size, last), mods


def double_block(
    block: DoubleBlock,
    img: Tensor,
    txt: Tensor,
    condition: Condition,
    turn: RotationTables,
    lengths: Sequence[int] | None,
    form: Form = DEFAULT,
) -> tuple[Tensor, Tensor]:
    """What `block(...)` returns; img and txt are overwritten with it."""
    img_spans, txt_spans = block.img_mod(condition), block.txt_mod(condition.rest())
    streams = (
        Stream(img, 0, img_spans, block.img_attn_qkv, block.img_attn_q_norm, block.img_attn_k_norm, turn),
        Stream(txt, img.shape[1], txt_spans, block.txt_attn_qkv, block.txt_attn_q_norm, block.txt_attn_k_norm, None),
    )
    out = attend_streams(streams, block.num_heads, lengths, form)
    for stream, name in zip(streams, ("img", "txt"), strict=True):
        proj, mlp = block.get_submodule(f"{name}_attn_proj"), cast(MLP, block.get_submodule(f"{name}_mlp"))
        linears = [cast(Linear, layer).ready(stream.x) for layer in (proj, mlp.fc1, mlp.fc2)]
        for low, high, mods in pieces(stream.x, stream.spans, form.config):
            attended = out[:, stream.offset + low : stream.offset + high]
            form.chunks.after_double(stream.x[:, low:high], attended, *mods[2:6], *linears)
        del linears  # before the other stream's are made
    return img, txt


def single_block(
    block: SingleBlock,
    x: Tensor,
    condition: Condition,
    turn: RotationTables,
    lengths: Sequence[int] | None,
    form: Form = DEFAULT,
) -> Tensor:
    """What `block(...)` returns; x is overwritten with it. The modulated input is made again rather than kept."""
    spans = block.modulation(condition)
    num_img = len(turn)
    shared = block.linear1, block.q_norm, block.k_norm
    streams = (
        Stream(x[:, :num_img], 0, clip_spans(spans, 0, num_img), *shared, turn),
        Stream(x[:, num_img:], num_img, clip_spans(spans, num_img, x.shape[1]), *shared, None),
    )
    out = attend_streams(streams, block.num_heads, lengths, form)
    linears = block.linear1.ready(x, slice(block.widths[0], None)), block.linear2.ready(x)
    for low, high, mods in pieces(x, spans, form.config):
        form.chunks.after_single(x[:, low:high], out[:, low:high], *mods, *linears)
    return x


def final_layer(x: Tensor, shift: Tensor, scale: Tensor, linear: Linear, config: LeanConfig) -> Tensor:
    """linear(LN(x) * (1 + scale) + shift), chunk by chunk."""
    size = config.chunk_size(x.shape[1])
    lows = range(0, x.shape[1], size)
    out = x.new_empty(*x.shape[:2], linear.out_features)
    for low in _telling(lows) if x.is_meta else lows:
        at = slice(low, low + size)
        out[:, at] = linear(modulate(x[:, at], shift, scale))
    return out

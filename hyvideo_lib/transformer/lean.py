"""The blocks again, with a few token-wide buffers in place of about eighteen. Equal to `blocks.py` within rounding.

Everything but attention works on tokens one by one, so it is done a chunk of tokens at a time: norm, modulation,
projection, head norm and rotation write a chunk straight into the query, key and value buffers, and the way back
(projection, gate, MLP) adds a chunk straight into the residual stream. Between the two only q, k, v and the attention's
result are as long as the video. The streams are overwritten; gradients are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from ..attention import attend
from .blocks import MLP, DoubleBlock, RMSNorm, SingleBlock
from .modulation import CHUNK_TOKENS, Condition, Spans, clip_spans, modulate
from .ops import Linear

MIN_CHUNK_TOKENS = 512
"""Smaller pieces would leave the matrix multiplications too thin. A chunk's MLP is nine tokens wide per token, so an
eighth of the video costs about as much as one token-wide buffer."""


class Joint:
    """Query, key and value buffers [B, N, L, D] of the joint sequence, filled in chunks."""

    def __init__(self, like: Tensor, length: int, num_heads: int) -> None:
        batch, width = like.shape[0], like.shape[-1] // num_heads
        self.q, self.k, self.v = (like.new_empty(batch, num_heads, length, width) for _ in range(3))

    def put(self, at: int, qkv: Tensor, q_norm: RMSNorm, k_norm: RMSNorm, rotation: Tensor | None) -> None:
        """Store qkv [B, n, 3 N D] of the tokens from `at` on; q and k are normed, and rotated if one is given."""
        rows = slice(at, at + qkv.shape[1])
        q, k, v = qkv.unflatten(-1, (3, self.q.shape[1], -1)).unbind(2)  # [B, n, N, D]
        for buffer, part, norm in ((self.q, q, q_norm), (self.k, k, k_norm)):
            part = norm(part)
            if rotation is not None:
                turned = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)))
                part = torch.view_as_real(turned.mul_(rotation[:, None])).flatten(-2)
            buffer[:, :, rows] = part.transpose(1, 2)
        self.v[:, :, rows] = v.transpose(1, 2)

    def attend(self, lengths: Sequence[int] | None) -> Tensor:
        """[B, L, N D]; the buffers are given up."""
        q, k, v = self.q, self.k, self.v
        del self.q, self.k, self.v
        out = attend(q, k, v, lengths).transpose(1, 2)
        return out.flatten(2)


def chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """start..end in pieces of an eighth, but at least MIN_CHUNK_TOKENS and at most CHUNK_TOKENS."""
    size = min(CHUNK_TOKENS, max(MIN_CHUNK_TOKENS, (end - start) // 8))
    for low in range(start, end, size):
        yield low, min(low + size, end)


def modulated(x: Tensor, spans: Spans, shift: int, scale: int) -> Tensor:
    """`modulate_spans` for one chunk."""
    parts = [modulate(x[:, a:b], mods[shift], mods[scale]) for a, b, mods in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def add_gated(x: Tensor, y: Tensor, spans: Spans, gate: int) -> None:
    """x += gate * y for one chunk, in place."""
    for a, b, mods in spans:
        x[:, a:b].addcmul_(mods[gate], y[:, a:b])


def gelu_mlp(x: Tensor, fc1: Linear, rows: slice = slice(None)) -> Tensor:
    hidden = fc1(x, rows)
    return torch.ops.aten.gelu_(hidden, approximate="tanh")


def double_block(
    block: DoubleBlock,
    img: Tensor,
    txt: Tensor,
    condition: Condition,
    rotation: Tensor,
    lengths: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """What `block(...)` returns; img and txt are overwritten with it."""
    num_img, num_txt = img.shape[1], txt.shape[1]
    joint = Joint(img, num_img + num_txt, block.num_heads)
    streams = (
        (img, 0, block.img_mod(condition), rotation, "img"),
        (txt, num_img, block.txt_mod(condition.rest()), None, "txt"),
    )
    for x, offset, spans, turn, name in streams:
        qkv = block.get_submodule(f"{name}_attn_qkv")
        q_norm, k_norm = (cast(RMSNorm, block.get_submodule(f"{name}_attn_{part}_norm")) for part in "qk")
        for low, high in chunks(0, x.shape[1]):
            a = modulated(x[:, low:high], clip_spans(spans, low, high), 0, 1)
            joint.put(offset + low, qkv(a), q_norm, k_norm, None if turn is None else turn[low:high])
    out = joint.attend(lengths)
    for x, offset, spans, _, name in streams:
        proj, mlp = block.get_submodule(f"{name}_attn_proj"), cast(MLP, block.get_submodule(f"{name}_mlp"))
        for low, high in chunks(0, x.shape[1]):
            part, here = x[:, low:high], clip_spans(spans, low, high)
            add_gated(part, proj(out[:, offset + low : offset + high]), here, 2)
            add_gated(part, mlp.fc2(gelu_mlp(modulated(part, here, 3, 4), mlp.fc1)), here, 5)
    return img, txt


def single_block(
    block: SingleBlock, x: Tensor, condition: Condition, rotation: Tensor, lengths: Sequence[int] | None
) -> Tensor:
    """What `block(...)` returns; x is overwritten with it. The modulated input is made twice rather than kept."""
    spans = block.modulation(condition)
    num_img = rotation.shape[0]
    joint = Joint(x, x.shape[1], block.num_heads)
    qkv_rows, mlp_rows = slice(0, block.widths[0]), slice(block.widths[0], None)
    for first, last, turn in ((0, num_img, rotation), (num_img, x.shape[1], None)):
        for low, high in chunks(first, last):
            a = modulated(x[:, low:high], clip_spans(spans, low, high), 0, 1)
            turned = None if turn is None else turn[low:high]
            joint.put(low, block.linear1(a, qkv_rows), block.q_norm, block.k_norm, turned)
    out = joint.attend(lengths)
    for low, high in chunks(0, x.shape[1]):
        part, here = x[:, low:high], clip_spans(spans, low, high)
        hidden = gelu_mlp(modulated(part, here, 0, 1), block.linear1, mlp_rows)
        add_gated(part, block.linear2(torch.cat([out[:, low:high], hidden], dim=-1)), here, 2)
    return x


def final_layer(x: Tensor, shift: Tensor, scale: Tensor, linear: Linear) -> Tensor:
    """linear(LN(x) * (1 + scale) + shift), chunk by chunk."""
    return torch.cat([linear(modulate(x[:, low:high], shift, scale)) for low, high in chunks(0, x.shape[1])], dim=1)

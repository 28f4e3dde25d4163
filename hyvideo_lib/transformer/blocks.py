"""The two kinds of block, as plainly as they can be written. `lean.py` computes the same with less memory.

Inside, img and txt are token streams [B, L, D] and vec is the conditioning vector; the joint order is image first.
HunyuanVideo report, section on the dual-stream to single-stream design.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attend
from .config import TransformerConfig
from .modulation import NORM_EPS, Condition, Modulation, gate_spans, modulate_spans
from .ops import Linear, Ops, VectorLayer
from .rope import apply_rope


class RMSNorm(VectorLayer):
    """Root-mean-square norm over a head: statistics in float32, rounded to the input's dtype, then the gain."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPS).to(x.dtype) * self.gain().to(x.dtype)


class MLP(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, hidden_size: int, mlp_size: int, ops: Ops) -> None:
        super().__init__()
        self.fc1 = ops.Linear(hidden_size, mlp_size)
        self.fc2 = ops.Linear(mlp_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3 N D], laid out (3, N, D), to q, k, v [B, L, N, D]."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return q, k, v


def attend_tokens(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """Attention over [B, L, N, D], joined to [B, L, N D]."""
    return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), lengths).transpose(1, 2).flatten(2)


class DoubleBlock(nn.Module):
    """Image and text with weights of their own, which meet in one attention."""

    img_mod: Modulation
    img_attn_qkv: Linear
    img_attn_q_norm: RMSNorm
    img_attn_k_norm: RMSNorm
    img_attn_proj: Linear
    img_mlp: MLP
    txt_mod: Modulation
    txt_attn_qkv: Linear
    txt_attn_q_norm: RMSNorm
    txt_attn_k_norm: RMSNorm
    txt_attn_proj: Linear
    txt_mlp: MLP

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", Modulation(size, 6, ops))
            self.add_module(f"{stream}_attn_qkv", ops.Linear(size, 3 * size))
            self.add_module(f"{stream}_attn_q_norm", RMSNorm(config.head_dim))
            self.add_module(f"{stream}_attn_k_norm", RMSNorm(config.head_dim))
            self.add_module(f"{stream}_attn_proj", ops.Linear(size, size))
            self.add_module(f"{stream}_mlp", MLP(size, config.mlp_size, ops))

    def forward(
        self, img: Tensor, txt: Tensor, condition: Condition, rotation: Tensor, lengths: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        """rotation [L_img, D/2]; lengths: valid tokens per item of the joint sequence, or None if all are."""
        img_spans, txt_spans = self.img_mod(condition), self.txt_mod(condition.rest())
        img_qkv = self.img_attn_qkv(modulate_spans(img, img_spans, 0, 1))
        txt_qkv = self.txt_attn_qkv(modulate_spans(txt, txt_spans, 0, 1))
        img_q, img_k, img_v = split_heads(img_qkv, self.num_heads)
        txt_q, txt_k, txt_v = split_heads(txt_qkv, self.num_heads)
        img_q = apply_rope(self.img_attn_q_norm(img_q), rotation)
        img_k = apply_rope(self.img_attn_k_norm(img_k), rotation)
        out = attend_tokens(
            torch.cat([img_q, self.txt_attn_q_norm(txt_q)], dim=1),
            torch.cat([img_k, self.txt_attn_k_norm(txt_k)], dim=1),
            torch.cat([img_v, txt_v], dim=1),
            lengths,
        )
        img_out, txt_out = out.split([img.shape[1], txt.shape[1]], dim=1)
        img = img + gate_spans(self.img_attn_proj(img_out), img_spans, 2)
        img = img + gate_spans(self.img_mlp(modulate_spans(img, img_spans, 3, 4)), img_spans, 5)
        txt = txt + gate_spans(self.txt_attn_proj(txt_out), txt_spans, 2)
        txt = txt + gate_spans(self.txt_mlp(modulate_spans(txt, txt_spans, 3, 4)), txt_spans, 5)
        return img, txt


class SingleBlock(nn.Module):
    """One stream [image, text]; attention and MLP side by side, between two shared Linears."""

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.widths = [3 * config.hidden_size, config.mlp_size]
        self.linear1 = ops.Linear(config.hidden_size, sum(self.widths))
        self.linear2 = ops.Linear(config.hidden_size + config.mlp_size, config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)
        self.modulation = Modulation(config.hidden_size, 3, ops)

    def forward(self, x: Tensor, condition: Condition, rotation: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """x [B, L_img + L_txt, D]; rotation [L_img, D/2] turns the image's rows only."""
        spans = self.modulation(condition)
        qkv, mlp = self.linear1(modulate_spans(x, spans, 0, 1)).split(self.widths, dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        q, k = (self.rotate(norm(part), rotation) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        out = attend_tokens(q, k, v, lengths)
        out = self.linear2(torch.cat([out, F.gelu(mlp, approximate="tanh")], dim=-1))
        return x + gate_spans(out, spans, 2)

    @staticmethod
    def rotate(x: Tensor, rotation: Tensor) -> Tensor:
        n = rotation.shape[0]
        return torch.cat([apply_rope(x[:, :n], rotation), x[:, n:]], dim=1)

"""The token refiner: two small transformer blocks that suit the LLM's states to the diffusion transformer.

It sees the timestep, so it runs at every step. No rotation, no query or key norm, and silu where the main blocks have
GELU: reference behaviour.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.sdpa import sdpa
from .config import TransformerConfig
from .embedders import ContextEmbed, ScalarEmbed
from .modulation import NORM_EPS
from .ops import Ops, VectorLayer

MLP_RATIO = 4
"""Of the refiner, whatever the main blocks' ratio is."""


def refiner_mask(text_mask: Tensor) -> Tensor:
    """[B, L] bool to [B, 1, L, L]: valid tokens see valid tokens, and every token sees the first.

    The first column is open to padded rows too, whose softmax would else be over nothing (reference behaviour).
    """
    allowed = text_mask[:, None, :, None] & text_mask[:, None, None, :]
    allowed[..., 0] = True
    return allowed


class RefinerBlock(nn.Module):
    """Self-attention and MLP, each gated by the context."""

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = LayerNorm(size)
        self.self_attn_qkv = ops.Linear(size, 3 * size)
        self.self_attn_proj = ops.Linear(size, size)
        self.norm2 = LayerNorm(size)
        self.mlp = RefinerMLP(size, MLP_RATIO * size, ops)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ops.Linear(size, 2 * size))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, L, D]; context [B, D]; mask bool [B, 1, L, L] or None."""
        gate_attn, gate_mlp = self.adaLN_modulation(context).unsqueeze(1).chunk(2, dim=-1)
        qkv = self.self_attn_qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, N, L, D] each
        out = sdpa(q, k, v, mask).transpose(1, 2).flatten(2)
        x = x + gate_attn * self.self_attn_proj(out)
        return x + gate_mlp * self.mlp(self.norm2(x))


class RefinerMLP(nn.Module):
    def __init__(self, size: int, mlp_size: int, ops: Ops) -> None:
        super().__init__()
        self.fc1 = ops.Linear(size, mlp_size)
        self.fc2 = ops.Linear(mlp_size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))


class LayerNorm(VectorLayer):
    """The norm over a token's features, in float32, rounded to the input's dtype."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = self.gain().float(), self.shift().float()
        return F.layer_norm(x.float(), x.shape[-1:], gain, shift, NORM_EPS).to(x.dtype)


class TokenRefiner(nn.Module):
    """LLM states [B, L, text_dim] to text tokens [B, L, D]."""

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__()
        self.input_embedder = ops.Linear(config.text_dim, config.hidden_size)
        self.t_embedder = ScalarEmbed(config.hidden_size, ops)
        self.c_embedder = ContextEmbed(config.text_dim, config.hidden_size, ops)
        self.individual_token_refiner = nn.ModuleDict(
            {"blocks": nn.ModuleList([RefinerBlock(config, ops) for _ in range(config.num_refiner_blocks)])}
        )

    def forward(self, states: Tensor, timesteps: Tensor, text_mask: Tensor | None) -> Tensor:
        """text_mask: bool [B, L], True where valid; None if all are. Padded rows come back finite and mean nothing."""
        if text_mask is None:
            mean, mask = states.float().mean(dim=1), None
        else:
            weight = text_mask.unsqueeze(-1).float()
            mean = (states.float() * weight).sum(dim=1) / weight.sum(dim=1)
            mask = refiner_mask(text_mask)
        context = self.t_embedder(timesteps, states.dtype) + self.c_embedder(mean.to(states.dtype))
        x = self.input_embedder(states)
        for block in cast(nn.ModuleList, self.individual_token_refiner["blocks"]):
            x = block(x, context, mask)
        return x


def valid_lengths(text_mask: Tensor) -> list[int]:
    """Valid tokens per item. Raises ValueError unless each item's valid tokens stand at the front, at least one."""
    lengths = text_mask.sum(dim=1)
    at_front = torch.arange(text_mask.shape[1], device=text_mask.device) < lengths[:, None]
    if not torch.equal(at_front, text_mask) or bool((lengths < 1).any()):
        raise ValueError("text_mask must be 1 for the first tokens of every prompt, at least one, and 0 after them.")
    return [int(n) for n in lengths.tolist()]

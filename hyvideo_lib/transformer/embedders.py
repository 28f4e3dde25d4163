"""What turns latents, noise levels, scales and the pooled text into the transformer's own width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import Ops

FREQUENCIES = 256


def sinusoid(values: Tensor, dim: int = FREQUENCIES, max_period: float = 10000.0) -> Tensor:
    """[B] to [B, dim] float32: cosines first, then sines; an odd dim ends in a zero. Values are used as they are."""
    half = dim // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32) / half
    # exp in float64, rounded once: processors differ in the last bit of a float32 exp, and a guidance of 6000 makes
    # 5e-4 of that.
    frequencies = exponents.double().exp().float().to(values.device)
    angles = values.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


class PatchEmbed(nn.Module):
    """[B, C, T, H, W] to tokens [B, L, D], t-major, w fastest."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: tuple[int, int, int], ops: Ops) -> None:
        super().__init__()
        self.proj = ops.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class ScalarEmbed(nn.Module):
    """A number per batch item (timestep, or guidance * 1000) to [B, D]: sinusoid, Linear, silu, Linear."""

    def __init__(self, hidden_size: int, ops: Ops) -> None:
        super().__init__()
        self.mlp = nn.Sequential(ops.Linear(FREQUENCIES, hidden_size), nn.SiLU(), ops.Linear(hidden_size, hidden_size))

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(sinusoid(values).to(dtype))


class VectorEmbed(nn.Module):
    """The pooled text vector [B, P] to [B, D]."""

    def __init__(self, in_dim: int, hidden_size: int, ops: Ops) -> None:
        super().__init__()
        self.in_layer = ops.Linear(in_dim, hidden_size)
        self.out_layer = ops.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class ContextEmbed(nn.Module):
    """The mean of the text states [B, text_dim] to [B, D]."""

    def __init__(self, in_dim: int, hidden_size: int, ops: Ops) -> None:
        super().__init__()
        self.linear_1 = ops.Linear(in_dim, hidden_size)
        self.linear_2 = ops.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))

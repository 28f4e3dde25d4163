"""The VAE's parts: residual block, frame-causal attention, and the levels that go down and up."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import lean
from .causal import CausalConv3d
from .norms import TileNorm

NORM_EPS = 1e-6


def norm_silu_conv(norm: TileNorm, conv: CausalConv3d, x: Tensor) -> Tensor:
    """conv(silu(norm(x)))."""
    if lean.suits(x):
        return lean.norm_silu_conv(norm, conv, x)
    return conv(norm_silu(norm, x))


def norm_silu(norm: TileNorm, x: Tensor) -> Tensor:
    """silu(norm(x)). Without gradients the activation overwrites the norm's own output: one tensor less."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, into x when no gradient is recorded. x must be the caller's own, fresh tensor."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


class ResnetBlock(nn.Module):
    """Two causal convolutions with norms that span all frames, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = TileNorm(groups, in_channels, NORM_EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = TileNorm(groups, out_channels, NORM_EPS)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        if in_channels != out_channels:
            self.conv_shortcut = CausalConv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        if lean.suits(x):
            return lean.resnet(self, x)
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(norm_silu(self.norm2, h))
        return add(h, self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class FrameCausalAttention(nn.Module):
    """Single-head attention in which a token sees all tokens of its own frame and of every frame before it.

    Frames are taken in turn as queries against the keys so far, so no [T*H*W, T*H*W] mask or score matrix is built.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = TileNorm(groups, channels, NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        frames, height, width = x.shape[2:]
        # Contiguous, because PyTorch's norm is coarser where channels are innermost, as the lean blocks leave them.
        tokens = self.group_norm(x.contiguous()).flatten(2).transpose(1, 2)  # [B, T*H*W, C]
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        per_frame = height * width
        seen = [
            F.scaled_dot_product_attention(q[:, :, end - per_frame : end], k[:, :, :end], v[:, :, :end])
            for end in range(per_frame, frames * per_frame + 1, per_frame)
        ]
        out = self.to_out[0](torch.cat(seen, dim=2).squeeze(1))
        return add(out.transpose(1, 2).reshape(x.shape), x)


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([FrameCausalAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    def __init__(self, channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour growth, then a causal convolution. The first frame stays a single frame: T -> 2T - 1."""

    def __init__(self, channels: int, factors: tuple[int, int, int]) -> None:
        super().__init__()
        self.factors = factors
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if lean.suits(x):
            return lean.upsample(self, x)
        time, *space = self.factors
        x = repeat(x, space, first_dim=3)
        if time > 1 and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], repeat(x[:, :, 1:], [time], first_dim=2)], dim=2)
        return self.conv(x)


def repeat(x: Tensor, factors: list[int], first_dim: int) -> Tensor:
    """Repeat every element `factors` times along first_dim and the dims after it."""
    for dim, factor in enumerate(factors, first_dim):
        x = x.repeat_interleave(factor, dim)
    return x


class DownBlock(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, stride: tuple[int, int, int] | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList([ResnetBlock(a, b, groups) for a, b in pairwise(widths)])
        self.downsamplers = nn.ModuleList([Downsample(out_channels, stride)] if stride else [])

    def layers(self) -> tuple[nn.Module, ...]:
        """What a video goes through, in order."""
        return (*self.resnets, *self.downsamplers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return x


class UpBlock(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, factors: tuple[int, int, int] | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList([ResnetBlock(a, b, groups) for a, b in pairwise(widths)])
        self.upsamplers = nn.ModuleList([Upsample(out_channels, factors)] if factors else [])

    def layers(self) -> tuple[nn.Module, ...]:
        """What a video goes through, in order."""
        return (*self.resnets, *self.upsamplers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return x

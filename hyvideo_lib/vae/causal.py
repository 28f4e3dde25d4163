"""Convolution that sees the past only: time is padded with the first frame in front, space by its edge all around."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from . import lean


class CausalConv3d(nn.Module):
    """Conv3d over [B, C, T, H, W]; T frames in give ceil(T / stride) out, and frame t depends on frames <= t only.

    HunyuanVideo report, 3D VAE section: the padding is replicated, never zero. A kernel of 1 pads nothing.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride)
        self.stride = stride
        side = kernel_size // 2
        self.padding = (side, side, side, side, kernel_size - 1, 0)  # W, W, H, H, T in front, T behind

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding) and lean.suits(x):
            return lean.conv(self, x)
        if any(self.padding):
            x = F.pad(x, self.padding, mode="replicate")
        return self.conv(x)

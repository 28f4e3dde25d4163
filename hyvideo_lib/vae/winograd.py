"""Two output frames for four multiplications in place of six: Winograd's F(2, 3) along time.

    y0 = (x0 - x2) g0 + (x1 + x2)(g0 + g1 + g2)/2 + (x2 - x1)(g0 - g1 + g2)/2
    y1 =                (x1 + x2)(g0 + g1 + g2)/2 - (x2 - x1)(g0 - g1 + g2)/2 - (x1 - x3) g2

equals y0 = x0 g0 + x1 g1 + x2 g2, y1 = x1 g0 + x2 g1 + x3 g2. Here x are frames, g the three slices of a kernel and
every product a 2D convolution, so a third of the work of a 3D convolution is gone. The sums cost one or two bits, which
float32 can spare and 16-bit numbers cannot. Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .stand_in import device_type

MIN_CHANNELS = 64
"""Below this a convolution is as quick as the sums around it."""
MIN_PIXELS = 2048
"""Pixels (of all frames) below which turning the weights costs more than is won."""


def pays(frames: Tensor, weight: Tensor) -> bool:
    """Whether frames [T, C, H, W] are worth it: float32 on a CPU, where nothing of the kind is built in."""
    pixels = frames.shape[0] * frames.shape[2] * frames.shape[3]
    is_plain_float = frames.dtype == torch.float32 and device_type(frames) == "cpu"
    return is_plain_float and frames.shape[0] > 2 and min(weight.shape[:2]) >= MIN_CHANNELS and pixels >= MIN_PIXELS


def pair_weights(weight: Tensor) -> tuple[Tensor, ...]:
    """[O, C, 3, KH, KW] to four 2D kernels [O, C, KH, KW]."""
    g0, g1, g2 = weight.unbind(2)
    outer, inner = (g0 + g2) / 2, g1 / 2
    return tuple(g.contiguous(memory_format=torch.channels_last) for g in (g0, outer + inner, outer - inner, g2))


def convolve_pairs(
    window: Tensor, weights: tuple[Tensor, ...], bias: Tensor | None, stride: Sequence[int], out: Tensor
) -> None:
    """Frames [2 + 2P, C, H, W] to out [2P, O, H', W']."""
    x0, x1, x2, x3 = window[:-2:2], window[1:-1:2], window[2::2], window[3::2]
    even, odd = out[::2], out[1::2]
    summed = F.conv2d(x1 + x2, weights[1], bias, stride)
    turned = F.conv2d(x2 - x1, weights[2], None, stride)
    torch.add(summed, turned, out=even)
    summed -= turned
    del turned
    even += F.conv2d(x0 - x2, weights[0], None, stride)
    torch.sub(summed, F.conv2d(x1 - x3, weights[3], None, stride), out=odd)

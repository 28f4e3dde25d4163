"""The blocks again, without gradients: less memory, fewer multiplications. Equal to `blocks.py` within rounding.

Norms span all frames, so a block's input and the result of its first convolution have to be whole; nothing else is. The
normalised and padded copies exist for a few frames at a time (`sweep.py`), and the second convolution writes over the
first one's result. Growing by repetition and then convolving is one step: neighbours of a repeated pixel are equal, so
the taps that fall on the same one are added up beforehand, and the grown copy never exists.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stand_in import device_type, kinds
from .sweep import Edges, Prepare, causal_conv, copy_frames, empty_video, frames_at_once, frames_of, windows

if TYPE_CHECKING:
    from .blocks import ResnetBlock, Upsample
    from .causal import CausalConv3d
    from .norms import TileNorm

Statistics = tuple[Tensor, Tensor]
"""Mean and 1 / sqrt(variance + eps) of each group of channels, [groups], float64."""

CASTING = ("cuda", "xpu")
"""Devices whose kernels widen and round numbers as they go. On a CPU whole tensors are widened first, which is slower
than to do it here; the bits are the same."""
MIN_PIXELS = 1024
"""Pixels (of all frames) below which there is little to save: the plain blocks run."""


def suits(x: Tensor) -> bool:
    """Whether a video [B, C, T, H, W] is to go through here: no gradient is wanted and it is no thumbnail."""
    return not torch.is_grad_enabled() and x.shape[2:].numel() >= MIN_PIXELS


def conv(layer: CausalConv3d, x: Tensor) -> Tensor:
    """What `layer(x)` returns."""
    return swept(layer, x, lambda frames: copy_frames)


def norm_silu_conv(norm: TileNorm, layer: CausalConv3d, x: Tensor, out: Tensor | None = None) -> Tensor:
    """layer(silu(norm(x))); into out, which may be x itself, if it is given."""
    return swept(layer, x, lambda frames: norm_silu(norm, frames), out)


def swept(
    layer: CausalConv3d, x: Tensor, prepare_for: Callable[[Tensor], Prepare], out: Tensor | None = None
) -> Tensor:
    """The layer over a video [B, C, T, H, W]. prepare_for(frames) says what is done to one item's frames before it."""
    weight, bias, stride = layer.conv.weight, layer.conv.bias, layer.stride
    if out is None:
        size = [-(-n // step) for n, step in zip(x.shape[2:], stride, strict=True)]
        out = empty_video(x, (x.shape[0], weight.shape[0], *size))
    for frames, result in zip(frames_of(x), frames_of(out), strict=True):
        causal_conv(frames, weight, bias, result, stride, prepare=prepare_for(frames))
    return out


def norm_silu(norm: TileNorm, frames: Tensor) -> Prepare:
    """silu(norm(frames)), a few frames at a time: the statistics of all frames [T, C, H, W] are taken first."""
    gain, shift = gain_and_shift(norm, norm.statistics(frames))

    def prepare(part: Tensor, window: Tensor) -> None:
        if window.dtype == torch.float32 or device_type(part) in CASTING:
            torch.addcmul(shift, part, gain, out=window)
        else:
            wide = part.float()
            window.copy_(torch.addcmul(shift, wide, gain, out=wide))
        F.silu(window, inplace=True)

    return prepare


def gain_and_shift(norm: nn.GroupNorm, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """What a norm with these statistics multiplies by and adds, [C, 1, 1], float32."""
    mean, scale = statistics
    channels_each = norm.num_channels // norm.num_groups
    gain = norm.weight.double() * scale.repeat_interleave(channels_each)
    shift = norm.bias.double() - mean.repeat_interleave(channels_each) * gain
    return gain.float().view(-1, 1, 1), shift.float().view(-1, 1, 1)


def group_statistics(frames: Tensor, groups: int, eps: float) -> Statistics:
    """Mean and 1 / sqrt(variance + eps) [groups], float64, of each group of channels over all frames [T, C, H, W].

    Taken for every frame and channel about their own mean, then joined in float64: one float32 sum over a long video
    would cost digits.
    """
    means, squares = [], []
    for part in kinds(frames.split(frames_at_once(frames)), frames):
        mean = part.mean((2, 3), keepdim=True, dtype=torch.float32)
        variance = (part - mean).square_().mean((2, 3)).double()
        mean = mean.double().flatten(1)
        means.append(mean)
        squares.append(variance + mean**2)
    mean, square = (torch.cat(parts).unflatten(1, (groups, -1)).mean((0, 2)) for parts in (means, squares))
    return mean, (square - mean**2 + eps).rsqrt()


def resnet(block: ResnetBlock, x: Tensor) -> Tensor:
    """What `block(x)` returns."""
    h = norm_silu_conv(block.norm1, block.conv1, x)
    h = norm_silu_conv(block.norm2, block.conv2, h, out=h)
    if not hasattr(block, "conv_shortcut"):
        return h.add_(x)
    shortcut = block.conv_shortcut.conv
    for frames, result in zip(frames_of(x), frames_of(h), strict=True):
        parts = list(zip(frames.split(1), result.split(1), strict=True))
        for part, target in kinds(parts, x):
            target += F.conv2d(part, shortcut.weight[:, :, 0], shortcut.bias)
    return h


def upsample(block: Upsample, x: Tensor) -> Tensor:
    """What `block(x)` returns, without the repeated pixels: every second row and column at a time."""
    in_time, *in_space = block.factors
    weight, bias = block.conv.conv.weight, block.conv.conv.bias
    total, *size = x.shape[2:]
    grown = [n * factor for n, factor in zip(size, in_space, strict=True)]
    out = empty_video(x, (x.shape[0], weight.shape[0], (total - 1) * in_time + 1, *grown))
    grow = grow_in_time if in_time == 2 else causal_conv
    for row, column in product((0, 1), repeat=2):
        part = kernel_of_phase(weight, row, column)
        edges = (1 - column, column, 1 - row, row)
        for frames, result in zip(frames_of(x), frames_of(out), strict=True):
            grow(frames, part, bias, result[:, :, row::2, column::2], edges=edges)
    return out


def kernel_of_phase(weight: Tensor, row: int, column: int) -> Tensor:
    """The kernel [O, C, 3, 2, 2] over the small picture that gives every second row and column of the grown one.

    weight: [O, C, 3, 3, 3], over the grown picture. For an even row its taps see (i - 1, i, i) of the small picture,
    for an odd one (i, i, i + 1); those that see the same are added. Columns alike.
    """
    for dim, phase in ((3, row), (4, column)):
        first, second, third = weight.unbind(dim)
        taps = (first, second + third) if phase == 0 else (first + second, third)
        weight = torch.stack(taps, dim)
    return weight


def grow_in_time(frames: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, edges: Edges) -> None:
    """Convolve frames [T, C, H, W], of which all but the first are doubled, into out [2T - 1, O, H', W'].

    The two frames made of frame t see (t - 1, t - 1, t) and (t - 1, t, t). Both need the outer taps on t - 1 and t, and
    the middle tap on t serves the second of t and the first of t + 1, so three products do for six.
    """
    outer_before, middle, outer_now = (g.contiguous(memory_format=torch.channels_last) for g in weight.unbind(2))
    held: Tensor | None = None  # the middle tap on the frame before
    for start, window in windows(frames, past=1, edges=edges):
        if held is None:
            out[:1] = F.conv2d(window, outer_before + middle + outer_now, bias)
            held = F.conv2d(window, middle)
            continue
        end = start + window.shape[0] - 1
        outer = F.conv2d(window[:-1], outer_before, bias)
        outer += F.conv2d(window[1:], outer_now)
        inner = F.conv2d(window[1:], middle)
        torch.add(outer, inner, out=out[2 * start : 2 * end - 1 : 2])
        torch.add(outer, torch.cat([held, inner[:-1]]), out=out[2 * start - 1 : 2 * end - 2 : 2])
        held = inner[-1:].clone()

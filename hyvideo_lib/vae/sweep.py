"""Causal convolution as a sweep over time, a few frames at a time, for inference.

What a convolution reads is padded and, where a norm comes before it, normalised: as whole tensors these copies are
larger than the video itself. Here they exist for one short window of frames, which carries the two frames of the past
from step to step; only input and output are whole. Every tap on the first frame's past sees that frame again, so for it
one 2D convolution with summed weights stands for three.

Frames are [T, C, H, W] here: a view of one video [C, T, H, W], channels innermost in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from . import winograd
from .stand_in import device_type, kinds

Prepare = Callable[[Tensor, Tensor], None]
"""Writes into its second argument what is to be convolved of its first, a few frames."""
Edges = tuple[int, int, int, int]
"""Pixels by which frames are padded left, right, above and below: 0 or 1 each."""

ALL_ROUND: Edges = (1, 1, 1, 1)
CPU_ELEMENTS, GPU_ELEMENTS = 4 * 2**20, 32 * 2**20
"""About how many numbers are handled at once: enough for the device to be busy."""


def frames_of(video: Tensor) -> list[Tensor]:
    """[B, C, T, H, W] to B views [T, C, H, W]."""
    return [item.transpose(0, 1) for item in video]


def empty_video(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised video [B, C, T, H, W], channels innermost in memory."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def frames_at_once(frames: Tensor) -> int:
    """How many of frames [T, C, H, W] make a good piece, at least one."""
    elements = CPU_ELEMENTS if device_type(frames) == "cpu" else GPU_ELEMENTS
    return max(elements // frames[0].numel(), 1)


def copy_frames(frames: Tensor, window: Tensor) -> None:
    """The plain `Prepare`: nothing before the convolution."""
    window.copy_(frames)


def windows(frames: Tensor, past: int, edges: Edges, prepare: Prepare = copy_frames) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, window): frames [n, C, H', W'] of `frames` [T, C, H, W] from `start` on, after `past` earlier ones.

    All are prepared and padded by their edges. The first window is frame 0 alone, without a past: that would be copies
    of it, and as such they stand in the second one. Later n are even, but for the last. A window is good until the next
    one is asked for, as its memory is used again.
    """
    total, channels, height, width = frames.shape
    left, right, top, bottom = edges
    rest = total - 1
    step = min(max(frames_at_once(frames), 2), rest + rest % 2) // 2 * 2
    buffer = torch.empty(
        (past + step if rest else 1, channels, height + top + bottom, width + left + right),
        dtype=frames.dtype,
        device=frames.device,
        memory_format=torch.channels_last,
    )

    def fill(start: int, window: Tensor) -> None:
        prepare(frames[start : start + window.shape[0]], window[:, :, top : top + height, left : left + width])
        pad_edges(window, edges)

    fill(0, buffer[:1])
    yield 0, buffer[:1]
    buffer[1:past] = buffer[:1]
    for start in kinds(range(1, total, step or 1), frames):
        end = past + min(step, total - start)
        fill(start, buffer[past:end])
        yield start, buffer[:end]
        if end == buffer.shape[0]:
            buffer[:past] = buffer[end - past :]


def pad_edges(frames: Tensor, edges: Edges) -> None:
    """Fill the outermost pixels with their neighbours, rows last so that corners are right."""
    left, right, top, bottom = edges
    if left:
        frames[..., 0] = frames[..., 1]
    if right:
        frames[..., -1] = frames[..., -2]
    if top:
        frames[..., 0, :] = frames[..., 1, :]
    if bottom:
        frames[..., -1, :] = frames[..., -2, :]


def causal_conv(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    stride: tuple[int, int, int] = (1, 1, 1),
    edges: Edges = ALL_ROUND,
    prepare: Prepare = copy_frames,
) -> None:
    """Convolve frames [T, C, H, W] with weight [O, C, 3, KH, KW] into out [ceil(T / stride), O, H', W'].

    out may be `frames` itself if their shapes are equal: a frame is read before it is written.
    """
    in_time, *in_space = stride
    pairs = winograd.pair_weights(weight) if in_time == 1 and winograd.pays(frames, weight) else None
    if device_type(frames) != "cpu":
        # A window's stride over its one item does not say that channels are innermost, so the weight has to; or the
        # card's library would copy every window into another order, and its result back.
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    for start, window in windows(frames, past=2, edges=edges, prepare=prepare):
        if start == 0:
            out[:1] = F.conv2d(window, weight.sum(2), bias, in_space)
        elif pairs and window.shape[0] % 2 == 0:
            winograd.convolve_pairs(window, pairs, bias, in_space, out[start : start + window.shape[0] - 2])
        elif window.shape[0] > 1 + in_time:
            # Outputs belong to every in_time-th frame from 0 on, and windows start at odd ones.
            video = window[in_time - 1 :].transpose(0, 1).unsqueeze(0)
            result = F.conv3d(video, weight, bias, stride)[0].transpose(0, 1)
            low = (start + in_time - 1) // in_time
            out[low : low + result.shape[0]] = result

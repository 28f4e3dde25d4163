"""The two forms of a video: what the VAE speaks, [3, F, H, W] in -1..1, and what files hold, bytes [F, H, W, 3]."""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 16
"""Frames converted together, so that the float32 copy stays small beside the video."""


def frames_from_pixels(pixels: Tensor) -> Tensor:
    """Bytes [F, H, W, 3] on the CPU of pixels [3, F, H, W], about -1..1.

    The reference's rule: (x / 2 + 0.5) clamped to 0..1, times 255, cut off to whole numbers (not rounded).
    """
    return torch.cat([_to_host(bytes_of(part)) for part in pixels.split(AT_ONCE, dim=1)]).contiguous()


def bytes_of(part: Tensor) -> Tensor:
    """The same of a few frames, left on their device and not contiguous."""
    return ((part.float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0)


def _to_host(frames: Tensor) -> Tensor:
    """On the CPU; put in order before, as a card does that far faster."""
    return frames if frames.device.type == "cpu" else frames.contiguous().cpu()


def pixels_from_frames(frames: Tensor) -> Tensor:
    """Pixels [3, F, H, W] in -1..1, float32, of bytes [F, H, W, 3]."""
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1

"""Inpainting masks: from the pixels that a user painted to the latents that the sampler works on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidSetting
from ..geometry import pixel_frames


def latent_mask(mask: Tensor, latents: Tensor) -> Tensor:
    """A mask [B, 1, T, h, w] in 0..1 for latents [B, C, T, h, w], float32 on the CPU. 1 is made anew, 0 is kept.

    mask: in 0..1, of any height and width: [H, W]; [F, H, W]; [F, 1, H, W]; or [B, 1, F, H, W]. F is 1, or the video's
    number of frames, or that of its latents. A latent frame takes the largest value of the frames that it stands for,
    and a latent the mean over its pixels. Raises InvalidSetting.
    """
    batch, _, frames, height, width = latents.shape
    spread = _with_five_dims(mask.detach().float().cpu())
    count = spread.shape[2]
    if count == pixel_frames(frames) and frames > 1:
        rest = spread[:, :, 1:].unflatten(2, (frames - 1, -1)).amax(dim=3)
        spread = torch.cat([spread[:, :, :1], rest], dim=2)
    elif count not in (1, frames):
        raise InvalidSetting(
            f"The mask has {count} frames, but the video has {pixel_frames(frames)}. Give one frame for all, or one "
            "for each."
        )
    if len(spread) not in (1, batch):
        raise InvalidSetting(f"There are {len(spread)} masks for {batch} videos. Give one for all, or one for each.")
    small = F.interpolate(spread.flatten(0, 2)[:, None], size=(height, width), mode="area")
    return small.view(*spread.shape[:3], height, width).clamp(0, 1).expand(batch, 1, frames, height, width)


def _with_five_dims(mask: Tensor) -> Tensor:
    """[B or 1, 1, F, H, W]."""
    if mask.ndim == 2:
        return mask[None, None, None]
    if mask.ndim == 3:
        return mask[None, None]
    if mask.ndim == 4 and mask.shape[1] == 1:
        return mask.transpose(0, 1)[None]
    if mask.ndim == 5 and mask.shape[1] == 1:
        return mask
    raise InvalidSetting(
        f"The mask is {list(mask.shape)}, but must be [height, width], [frames, height, width], [frames, 1, height, "
        "width] or [videos, 1, frames, height, width]."
    )

"""The sizes that are measured, and a step's inputs for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.transformer import make_inputs
from hyvideo_lib.geometry import image_tokens, latent_shape
from hyvideo_lib.transformer import TransformerConfig

TEXT_TOKENS = 256


@dataclass(frozen=True)
class Clip:
    """Pixels and frames."""

    width: int
    height: int
    frames: int

    @property
    def name(self) -> str:
        return f"{self.width} x {self.height} x {self.frames}"

    @property
    def tokens(self) -> int:
        """Of image and text together."""
        return image_tokens(self.width, self.height, self.frames) + TEXT_TOKENS

    @property
    def latents(self) -> tuple[int, int, int]:
        return latent_shape(self.width, self.height, self.frames)

    def inputs(self, config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Of one step, all text valid: nobody has an advantage from padding then."""
        return make_inputs(config, self.latents, TEXT_TOKENS, dtype, device)


CLIPS = (Clip(512, 320, 61), Clip(848, 480, 129), Clip(960, 544, 129), Clip(1280, 720, 129))
TINY_CLIPS = (Clip(32, 32, 5),)


def clips(is_quick: bool) -> tuple[Clip, ...]:
    return TINY_CLIPS if is_quick else CLIPS

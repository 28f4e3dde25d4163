"""The sizes that are measured, and a step's inputs for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.transformer import make_inputs
from hyvideo_lib.geometry import image_tokens, latent_shape
from hyvideo_lib.memory.plan import block_flops
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

    def operations(self, config: TransformerConfig) -> float:
        """Of all blocks in one pass; see `block_flops`."""
        num_blocks = config.num_double_blocks + config.num_single_blocks
        return num_blocks * block_flops(config.hidden_size, config.mlp_ratio, self.tokens)

    def inputs(self, config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Of one step, all text valid: nobody has an advantage from padding then."""
        return make_inputs(config, self.latents, TEXT_TOKENS, dtype, device)


CLIPS = (Clip(1280, 720, 129), Clip(960, 544, 129), Clip(848, 480, 129), Clip(512, 320, 61))
"""The largest first: what it takes decides, and a table's time may not last for all."""
TINY_CLIPS = (Clip(32, 32, 5),)


def clips(is_quick: bool) -> tuple[Clip, ...]:
    return TINY_CLIPS if is_quick else CLIPS


def cropped(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A part of the video as large as the smallest clip, all else the same.

    A pass over it does what is done once: kernels are loaded, and the vectors of this conditioning are remembered.
    """
    frames, height, width = CLIPS[-1].latents
    return {**inputs, "latents": inputs["latents"][:, :, :frames, :height, :width]}

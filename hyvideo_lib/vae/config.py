"""The numbers that define one causal VAE."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting

STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
"""(T, H, W) strides between the encoder's four levels, outermost first: 4 x 8 x 8 in all."""

UPSAMPLES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
"""The decoder's factors between its levels, innermost first. Not the encoder's mirrored: space alone comes first."""


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE; the defaults are the released model's.

    block_channels: channels per level, outermost first. scaling: what latents are multiplied by for the transformer.
    has_encoder: False for one that only decodes.
    """

    block_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    latent_channels: int = 16
    scaling: float = 0.476986
    has_encoder: bool = True

    def __post_init__(self) -> None:
        if len(self.block_channels) != len(STRIDES) + 1:
            raise InvalidSetting(f"block_channels has {len(self.block_channels)} levels, but the VAE has four.")
        for channels in self.block_channels:
            if channels <= 0 or channels % self.norm_groups:
                raise InvalidSetting(f"{channels} channels cannot be split into {self.norm_groups} norm groups.")
        if self.layers_per_block < 1 or self.latent_channels < 1 or self.scaling <= 0:
            raise InvalidSetting("layers_per_block, latent_channels and scaling must be positive.")

"""What latents look like, for previews. The colours are invented; only their shape is ComfyUI's."""

from __future__ import annotations


class LatentFormat:
    scale_factor = 1.0
    latent_channels = 4
    latent_dimensions = 2


class HunyuanVideo(LatentFormat):
    scale_factor = 0.476986
    latent_channels = 16
    latent_dimensions = 3
    latent_rgb_factors = tuple((0.1 * (i % 2), 0.1 * (i % 3 == 0), 0.1 * (i % 5 == 0)) for i in range(16))

"""What the encoder returns: a Gaussian for every latent number, of which the mean is the usual answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent Gaussians. mean, logvar: [B, C, T, H, W], in unscaled VAE space."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> DiagonalGaussian:
        """Split [B, 2C, T, H, W] into mean and log variance; the latter is clamped to -30..20."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw [B, C, T, H, W]. The noise is drawn in float32 on the CPU: a seed means the same on any device."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

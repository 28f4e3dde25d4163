"""The causal 3D VAE: video in -1..1 to latents eight times smaller in space and four in time, and back."""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .config import VAEConfig
    from .model import CausalVideoVAE
    from .posterior import DiagonalGaussian
    from .tiling import Tiles
    from .tiny import TinyVAE, TinyVAEConfig
else:
    __getattr__ = names_from(
        __name__,
        {
            "config": "VAEConfig",
            "model": "CausalVideoVAE",
            "posterior": "DiagonalGaussian",
            "tiling": "Tiles",
            "tiny": "TinyVAE TinyVAEConfig",
        },
    )

__all__ = ["CausalVideoVAE", "DiagonalGaussian", "Tiles", "TinyVAE", "TinyVAEConfig", "VAEConfig"]

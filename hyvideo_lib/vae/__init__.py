"""The causal 3D VAE: video in -1..1 to latents eight times smaller in space and four in time, and back."""

from .config import VAEConfig
from .model import CausalVideoVAE
from .posterior import DiagonalGaussian
from .tiling import Tiles
from .tiny import TinyVAE, TinyVAEConfig

__all__ = ["CausalVideoVAE", "DiagonalGaussian", "Tiles", "TinyVAE", "TinyVAEConfig", "VAEConfig"]

"""HunyuanVideo's diffusion transformer: double-stream blocks, then single-stream blocks, one velocity out."""

from .config import TransformerConfig
from .model import HunyuanVideoTransformer
from .rope import RopeSettings

__all__ = ["HunyuanVideoTransformer", "RopeSettings", "TransformerConfig"]

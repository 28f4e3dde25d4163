"""HunyuanVideo's diffusion transformer: double-stream blocks, then single-stream blocks, one velocity out."""

from .compile_config import CompileConfig
from .config import TransformerConfig
from .lean_config import LeanConfig
from .model import HunyuanVideoTransformer
from .rope import RopeSettings

__all__ = ["CompileConfig", "HunyuanVideoTransformer", "LeanConfig", "RopeSettings", "TransformerConfig"]

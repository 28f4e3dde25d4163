"""HunyuanVideo's diffusion transformer: double-stream blocks, then single-stream blocks, one velocity out."""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .compile_config import CompileConfig
    from .config import TransformerConfig
    from .lean_config import LeanConfig
    from .model import HunyuanVideoTransformer
    from .rope import RopeSettings
else:
    __getattr__ = names_from(
        __name__,
        {
            "compile_config": "CompileConfig",
            "config": "TransformerConfig",
            "lean_config": "LeanConfig",
            "model": "HunyuanVideoTransformer",
            "rope": "RopeSettings",
        },
    )

__all__ = ["CompileConfig", "HunyuanVideoTransformer", "LeanConfig", "RopeSettings", "TransformerConfig"]

"""Files to models: what a file is, told from its header, and modules whose weights are the mapped file."""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .build import load_any_vae, load_transformer, load_vae
    from .build_text import load_text_encoder
    from .detect import FileReport, TensorGroup, inspect_file
    from .read import Header, TensorInfo, map_tensors, read_header
else:
    __getattr__ = names_from(
        __name__,
        {
            "build": "load_any_vae load_transformer load_vae",
            "build_text": "load_text_encoder",
            "detect": "FileReport TensorGroup inspect_file",
            "read": "Header TensorInfo map_tensors read_header",
        },
    )

__all__ = [
    "FileReport",
    "Header",
    "TensorGroup",
    "TensorInfo",
    "inspect_file",
    "load_any_vae",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "map_tensors",
    "read_header",
]

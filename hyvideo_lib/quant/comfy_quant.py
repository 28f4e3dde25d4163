"""What ComfyUI's newer files say of a quantised layer: JSON in a tensor beside the weight, or in the file's metadata.

Both hold {"format": NAME, ...}. The formats read here are one number of fp8 or int8 for each weight; those that pack
several numbers into a byte, or turn the weight before they round it, are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedFile

COMFY_QUANT = "comfy_quant"
METADATA_KEY = "_quantization_metadata"
MAX_JSON_BYTES = 65_536  # of a layer's own description; real ones have about 80

# Format -> what its weights are stored as.
FORMATS: Mapping[str, torch.dtype] = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int8_tensorwise": torch.int8,
}
_USE = "Use a bf16 file, an fp8 file or a GGUF file of this model."


@dataclass(frozen=True)
class LayerFormat:
    """full_precision: the file asks to multiply in the compute dtype, although the device could in fp8."""

    name: str = "float8_e4m3fn"
    full_precision: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return FORMATS[self.name]


def layer_format(
    layer: str, weight: Tensor, description: Tensor | None, declared: Collection[LayerFormat]
) -> LayerFormat:
    """The format of a layer's weight: as its own description says, or the one declared in the metadata that fits.

    An fp8 weight without either is what its dtype says; another is refused. Raises UnsupportedFile.
    """
    if description is not None:
        found = _parse(f"{layer}.{COMFY_QUANT}", _json_of(layer, description))
        if weight.dtype not in (found.dtype, torch.uint8):  # older files store fp8 as bytes
            stored = str(weight.dtype).removeprefix("torch.")
            raise UnsupportedFile(
                f"{layer}.weight is {stored}, but its description says {found.name}. The file is damaged; use another."
            )
        return found
    fitting = [found for found in declared if found.dtype == weight.dtype]
    if fitting:
        return LayerFormat(fitting[0].name, any(found.full_precision for found in fitting))
    for name in ("float8_e4m3fn", "float8_e5m2"):
        if FORMATS[name] == weight.dtype:
            return LayerFormat(name)
    raise UnsupportedFile(
        f"{layer}.weight is {str(weight.dtype).removeprefix('torch.')} with a scale, and neither {layer}.{COMFY_QUANT} "
        f"nor the metadata says in which format. {_USE}"
    )


def formats_in_metadata(text: str | None) -> frozenset[LayerFormat]:
    """The formats that the file's metadata gives its layers. Raises UnsupportedFile for one that is not read here."""
    if text is None:
        return frozenset()
    try:
        layers = json.loads(text)["layers"]
        entries = layers.items()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedFile(f"The metadata entry {METADATA_KEY!r} is no table of layers. {_USE}") from error
    return frozenset(_parse(f"The metadata entry of {str(layer)[:200]}", entry) for layer, entry in entries)


def _json_of(layer: str, description: Tensor) -> Any:
    if description.dtype != torch.uint8 or description.numel() > MAX_JSON_BYTES:
        raise UnsupportedFile(f"{layer}.{COMFY_QUANT} is not a short JSON text. The file is damaged; use another.")
    try:
        return json.loads(bytes(description.flatten().tolist()).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedFile(f"{layer}.{COMFY_QUANT} is not JSON. The file is damaged; use another.") from error


def _parse(where: str, entry: Any) -> LayerFormat:
    name = entry.get("format") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in FORMATS:
        raise UnsupportedFile(
            f"{where} says that the weight is stored as {str(name)[:40]}, which is not read here ({', '.join(FORMATS)} "
            f"are). {_USE}"
        )
    if entry.get("convrot"):
        raise UnsupportedFile(f"{where} says that the weight was rotated (convrot), which is not read here. {_USE}")
    return LayerFormat(name, bool(entry.get("full_precision_matrix_mult")))

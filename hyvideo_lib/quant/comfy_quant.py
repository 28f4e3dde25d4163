"""What ComfyUI's newer files say of a quantised layer: JSON in a tensor beside the weight, or in the file's metadata.

Both hold {"format": NAME, ...}, and further keys stand beside the format or in a table under "params". The formats read
here are one number of fp8 or int8 for each weight; those that pack several numbers into a byte are refused by name. So
is every key, and every value of one, that is not understood: what it says of the weight would be guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedFile
from .rotation import is_group_size

COMFY_QUANT = "comfy_quant"
METADATA_KEY = "_quantization_metadata"
MAX_JSON_BYTES = 65_536  # of a layer's own description; real ones have about 80
MAX_TABLE_CHARACTERS = 10_000_000  # of the metadata's entry; 1,000 layers take about 100,000
MAX_PREFIX_WORDS = 8  # before a layer's name, in the metadata's table
DEFAULT_GROUP = 256  # ComfyUI's, where a rotated layer names no size

# Format -> what its weights are stored as.
FORMATS: Mapping[str, torch.dtype] = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int8_tensorwise": torch.int8,
}
ROTATED_FORMATS = ("int8_tensorwise",)  # ComfyUI reads a rotation of no other that is read here
VERSIONS = ("1", "1.0", 1, 1.0)  # of the metadata's table


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(size) is int and size >= 0 for size in value)


# Key -> whether a value of it is understood. All that is known to occur beside the formats above.
KEYS: Mapping[str, Callable[[Any], bool]] = {
    "format": _is_text,
    "full_precision_matrix_mult": _is_flag,
    "convrot": _is_flag,
    "convrot_groupsize": is_group_size,
    "weight_rotated": _is_flag,  # says the same as convrot
    "per_row": _is_flag,  # the scale's shape says it too
    "orig_dtype": _is_text,  # of the weight before it was quantised, which changes nothing
    "orig_shape": _is_shape,
}
TABLE_KEYS = ("format_version", "layers")
_USE = "Use a bf16 file, an fp8 file or a GGUF file of this model."
_DAMAGED = "The file is damaged; use another."


@dataclass(frozen=True)
class LayerFormat:
    """full_precision: the file asks to multiply in the compute dtype, although the device could in fp8.

    rotation: numbers of a row that were rotated together before they were rounded, 0 for none. shape: what the weight's
    shape must be, None where nothing is said of it.
    """

    name: str = "float8_e4m3fn"
    full_precision: bool = False
    rotation: int = 0
    shape: tuple[int, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return FORMATS[self.name]


@dataclass(frozen=True)
class Declared:
    """The formats that a file's metadata gives its layers, by the names that stand there."""

    formats: Mapping[str, LayerFormat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        behind: dict[str, set[LayerFormat]] = {}
        for name, found in self.formats.items():
            words = name.split(".", MAX_PREFIX_WORDS)
            for first in range(1, len(words)):
                behind.setdefault(".".join(words[first:]), set()).add(found)
        object.__setattr__(self, "_behind", behind)

    _behind: Mapping[str, set[LayerFormat]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def of(self, layer: str) -> LayerFormat | None:
        """The format of a layer, whose name may stand there behind a prefix. Raises UnsupportedFile for two of them."""
        if layer in self.formats:
            return self.formats[layer]
        found = self._behind.get(layer, set())
        if len(found) > 1:
            raise UnsupportedFile(f"The metadata entry {METADATA_KEY!r} says two things of {layer}. {_USE}")
        return next(iter(found), None)


def layer_format(layer: str, weight: Tensor, description: Tensor | None, declared: Declared) -> LayerFormat:
    """The format of a layer's weight that has a scale: as its own description or its line of the metadata says.

    An fp8 weight without either is what its dtype says; another is refused. Raises UnsupportedFile.
    """
    found = _stated(layer, description, declared)
    if found is not None:
        _check_weight(layer, weight, found, (found.dtype, torch.uint8))  # older files store fp8 as bytes
        return found
    for name in ("float8_e4m3fn", "float8_e5m2"):
        if FORMATS[name] == weight.dtype:
            return LayerFormat(name)
    raise UnsupportedFile(
        f"{layer}.weight is {_name_of(weight)} with a scale, and neither {layer}.{COMFY_QUANT} "
        f"nor the metadata says in which format. {_USE}"
    )


def check_unscaled(layer: str, weight: Tensor, description: Tensor | None, declared: Declared) -> None:
    """Refuse a weight without a scale whose description says more than its dtype does. Raises UnsupportedFile."""
    found = _stated(layer, description, declared)
    if found is None:
        return
    _check_weight(layer, weight, found, (found.dtype,))
    if not found.dtype.is_floating_point:
        raise UnsupportedFile(f"{layer}.weight is {found.name}, and {layer}.weight_scale is not in the file. {_USE}")


def formats_in_metadata(text: str | None) -> Declared:
    """The formats that the file's metadata gives its layers. Raises UnsupportedFile for one that is not read here."""
    if text is None:
        return Declared()
    where = f"The metadata entry {METADATA_KEY!r}"
    table = table_in_metadata(text)
    if table is None:
        raise UnsupportedFile(f"{where} is no table of layers. {_USE}")
    strange = [key for key in table if key not in TABLE_KEYS]
    if strange:
        raise UnsupportedFile(f"{where} has the key {strange[0][:40]!r}, which is not understood here. {_USE}")
    if table.get("format_version", VERSIONS[0]) not in VERSIONS:
        raise UnsupportedFile(
            f"{where} is of version {str(table['format_version'])[:40]}; {VERSIONS[1]} is read. {_USE}"
        )
    return Declared(
        {layer: _parse(f"The metadata entry of {layer[:200]}", entry) for layer, entry in table["layers"].items()}
    )


def table_in_metadata(text: str) -> dict[str, Any] | None:
    """The metadata's entry as a dict whose "layers" are a dict; None if it is anything else, or too long."""
    try:
        table = json.loads(text) if len(text) <= MAX_TABLE_CHARACTERS else None
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) and isinstance(table.get("layers"), dict) else None


def entry_in_tensor(layer: str, description: Tensor) -> Any:
    """What a layer's own description holds. Raises UnsupportedFile if it is no short JSON text."""
    if description.dtype != torch.uint8 or description.numel() > MAX_JSON_BYTES:
        raise UnsupportedFile(f"{layer}.{COMFY_QUANT} is not a short JSON text. {_DAMAGED}")
    try:
        return json.loads(bytes(description.flatten().tolist()).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedFile(f"{layer}.{COMFY_QUANT} is not JSON. {_DAMAGED}") from error


def _stated(layer: str, description: Tensor | None, declared: Declared) -> LayerFormat | None:
    """What is said of a layer, in the tensor beside it or in the metadata; in both, it must be the same."""
    listed = declared.of(layer)
    if description is None:
        return listed
    where = f"{layer}.{COMFY_QUANT}"
    found = _parse(where, entry_in_tensor(layer, description))
    if listed is not None and (found.name, found.rotation) != (listed.name, listed.rotation):
        raise UnsupportedFile(f"{where} and the metadata say two things of {layer}. {_USE}")
    return found


def _check_weight(layer: str, weight: Tensor, found: LayerFormat, dtypes: tuple[torch.dtype, ...]) -> None:
    if weight.dtype not in dtypes:
        raise UnsupportedFile(
            f"{layer}.weight is {_name_of(weight)}, but its description says {found.name}. {_DAMAGED}"
        )
    shape = tuple(weight.shape)
    if found.shape not in (None, shape):
        raise UnsupportedFile(
            f"{layer}.weight is {list(shape)}, but its description says {list(found.shape or ())}. Weights that were "
            f"filled up are not read. {_USE}"
        )
    if found.rotation and (len(shape) != 2 or shape[1] % found.rotation):
        raise UnsupportedFile(
            f"{layer}.weight is {list(shape)}, and its description says that it was rotated in groups of "
            f"{found.rotation}, which its rows are not made of. {_DAMAGED}"
        )


def _parse(where: str, entry: Any) -> LayerFormat:
    keys = _flattened(where, entry) if isinstance(entry, dict) else {}
    name = keys.get("format")
    if not isinstance(name, str) or name not in FORMATS:
        raise UnsupportedFile(
            f"{where} says that the weight is stored as {str(name)[:40]}, which is not read here ({', '.join(FORMATS)} "
            f"are). {_USE}"
        )
    for key, value in keys.items():
        if key not in KEYS:
            raise UnsupportedFile(f"{where} has the key {key[:40]!r}, which is not understood here. {_USE}")
        if not KEYS[key](value):
            raise UnsupportedFile(f"{where} says {key}: {str(value)[:40]}, which is not understood here. {_USE}")
    shape = keys.get("orig_shape")
    return LayerFormat(
        name,
        keys.get("full_precision_matrix_mult", False),
        _rotation(where, name, keys),
        None if shape is None else tuple(shape),
    )


def _flattened(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an entry and of its "params" together. Raises UnsupportedFile if they contradict each other."""
    keys = {key: value for key, value in entry.items() if key != "params"}
    params = entry.get("params", {})
    if not isinstance(params, dict):
        raise UnsupportedFile(f"{where} says params: {str(params)[:40]}, which is not understood here. {_USE}")
    for key, value in params.items():
        if key in keys and (type(keys[key]), keys[key]) != (type(value), value):
            raise UnsupportedFile(f"{where} says two things of {key[:40]}. {_USE}")
        keys[key] = value
    return keys


def _rotation(where: str, name: str, keys: Mapping[str, Any]) -> int:
    """The size of the groups that were rotated, 0 for none."""
    flags = {key: keys[key] for key in ("convrot", "weight_rotated") if key in keys}
    if len(set(flags.values())) > 1 or ("convrot_groupsize" in keys and not flags):
        raise UnsupportedFile(f"{where} does not say clearly whether the weight was rotated (convrot). {_USE}")
    if not any(flags.values()):
        return 0
    if name not in ROTATED_FORMATS:
        raise UnsupportedFile(
            f"{where} says that a weight in {name} was rotated (convrot), which is read of "
            f"{', '.join(ROTATED_FORMATS)} only. {_USE}"
        )
    return int(keys.get("convrot_groupsize", DEFAULT_GROUP))


def _name_of(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")

"""The ways in which files store weights, by name: each tells the weights with companions from the plain tensors.

A companion is a tensor beside a weight that says what its numbers mean; a marker says it of a whole file. Neither is
ever a weight, and neither is left behind: what a scheme does not understand it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import InvalidSetting, UnsupportedFile
from .comfy_quant import COMFY_QUANT, METADATA_KEY, LayerFormat, check_unscaled, formats_in_metadata, layer_format
from .fp8 import FP8_DTYPES
from .ggml import GGML_FORMATS
from .stored import BlockWeight, ScaledWeight, StoredWeight

WEIGHT = ".weight"
FULL_PRECISION_MARKER = 2  # elements of the marker `scaled_fp8` in files whose weights are not for fp8 products


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a file in Tencent's names, and what its header says of them.

    dtypes: the header's dtype by name, needed for ggml blocks only. metadata: the file's; what it says of layers, it
    says under these names, or behind a prefix.
    """

    tensors: Mapping[str, Tensor]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unpacked:
    """plain: tensors that are what they seem, by name. stored: the others, by the name of their layer."""

    plain: Mapping[str, Tensor]
    stored: Mapping[str, StoredWeight]


def unpack(scheme: str, contents: StoredTensors) -> Unpacked:
    """Sort a file's tensors by a scheme in SCHEMES; copies nothing but scales.

    Raises InvalidSetting for an unknown scheme, UnsupportedFile for companions that do not fit their weights.
    """
    if scheme not in SCHEMES:
        raise InvalidSetting(f"The storage scheme is {scheme!r}, but must be one of {', '.join(SCHEMES)}.")
    return SCHEMES[scheme](contents)


def _unpack_plain(contents: StoredTensors) -> Unpacked:
    return Unpacked(contents.tensors, {})


def _unpack_tencent(contents: StoredTensors) -> Unpacked:
    """fp8 weights with `{layer}.fp8_scale`; a bare `fp8_scale` marks the file."""
    return _unpack_scaled(contents.tensors, _Companions("fp8_scale", markers=("fp8_scale",)), FP8_DTYPES)


def _unpack_comfyui_scaled(contents: StoredTensors) -> Unpacked:
    """fp8 weights with `{layer}.scale_weight`, perhaps `{layer}.scale_input`; `scaled_fp8` marks the file."""
    names = _Companions("scale_weight", "scale_input", markers=("scaled_fp8",))
    full = any(
        tensor.numel() == FULL_PRECISION_MARKER for name, tensor in contents.tensors.items() if names.is_marker(name)
    )
    return _unpack_scaled(contents.tensors, names, FP8_DTYPES, lambda layer: LayerFormat(full_precision=full))


def _unpack_comfyui_quant(contents: StoredTensors) -> Unpacked:
    """Weights with `{layer}.weight_scale`, whose format stands in `{layer}.comfy_quant` or in the file's metadata."""
    names = _Companions("weight_scale", "input_scale", ignored=(COMFY_QUANT,))
    declared = formats_in_metadata(contents.metadata.get(METADATA_KEY))
    tensors = dict(contents.tensors)
    formats: dict[str, LayerFormat] = {}
    for name, tensor in contents.tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight":
            continue
        description = contents.tensors.get(f"{layer}.{COMFY_QUANT}")
        if f"{layer}.weight_scale" in tensors:
            formats[layer] = layer_format(layer, tensor, description, declared)
            tensors[name] = tensor.view(formats[layer].dtype)
        else:
            check_unscaled(layer, tensor, description, declared)
    return _unpack_scaled(tensors, names, (*FP8_DTYPES, torch.int8), formats.__getitem__)


def _unpack_gguf(contents: StoredTensors) -> Unpacked:
    """uint8 rows of blocks, of the format that the header gives; all other tensors are plain."""
    plain, stored = {}, {}
    for name, tensor in contents.tensors.items():
        ggml_type = contents.dtypes.get(name, "")
        if ggml_type not in GGML_FORMATS or tensor.dtype != torch.uint8:
            plain[name] = tensor
        elif name.endswith(WEIGHT):
            stored[name.removesuffix(WEIGHT)] = BlockWeight(tensor, ggml_type)
        else:
            raise UnsupportedFile(
                f"{name} is stored as {ggml_type.upper()}, but only weights can be. Use another file."
            )
    return Unpacked(plain, stored)


SCHEMES: Mapping[str, Callable[[StoredTensors], Unpacked]] = MappingProxyType(
    {
        "none": _unpack_plain,
        "fp8_cast": _unpack_plain,
        "fp8_scale": _unpack_tencent,
        "comfyui_fp8_scaled": _unpack_comfyui_scaled,
        "comfyui_quant": _unpack_comfyui_quant,
        "gguf": _unpack_gguf,
    }
)


@dataclass(frozen=True)
class _Companions:
    """Last words of the names of companions, and whole names of markers (a prefix may stand before them)."""

    scale: str
    input_scale: str = ""
    markers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def is_marker(self, name: str) -> bool:
        """A marker belongs to no layer: it stands bare, or `scaled_fp8` after a prefix."""
        return name in self.markers or name.endswith(".scaled_fp8")


def _unpack_scaled(
    tensors: Mapping[str, Tensor],
    names: _Companions,
    accepted: tuple[torch.dtype, ...],
    format_of: Callable[[str], LayerFormat] = lambda layer: LayerFormat(),
) -> Unpacked:
    plain: dict[str, Tensor] = {}
    stored: dict[str, StoredWeight] = {}
    leaves = {names.scale, *filter(None, (names.input_scale,)), *names.ignored}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if names.is_marker(name):
            continue
        if leaf in leaves:
            if f"{layer}{WEIGHT}" not in tensors:
                raise UnsupportedFile(
                    f"{name} belongs to a weight that is not in the file. Download it again, or use another file."
                )
            continue
        scale = tensors.get(f"{layer}.{names.scale}") if leaf == "weight" else None
        if scale is None:
            plain[name] = tensor
            continue
        if tensor.dtype not in accepted:
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
            raise UnsupportedFile(
                f"{name} has a scale but is {str(tensor.dtype).removeprefix('torch.')}; weights with a scale are "
                f"{dtypes}. Use a bf16, fp16 or plain fp8 file."
            )
        input_scale = tensors.get(f"{layer}.{names.input_scale}") if names.input_scale else None
        found = format_of(layer)
        stored[layer] = ScaledWeight(
            tensor,
            _one_or_each_row(f"{layer}.{names.scale}", scale, tensor.shape[0] if tensor.ndim else 1),
            None if input_scale is None else _one_or_each_row(f"{layer}.{names.input_scale}", input_scale, 1),
            found.full_precision,
            found.rotation,
        )
    return Unpacked(plain, stored)


def _one_or_each_row(name: str, scale: Tensor, rows: int) -> Tensor:
    """A scale as [1] or [rows, 1] float32. Raises UnsupportedFile for other shapes and for numbers that are none."""
    if not scale.is_floating_point() or tuple(scale.shape) not in {(), (1,), (1, 1), (rows,), (rows, 1)}:
        kind = str(scale.dtype).removeprefix("torch.")
        raise UnsupportedFile(
            f"{name} is {kind} of shape {list(scale.shape)}, but one number, or one for each of {rows} rows, is "
            "expected. Scales of blocks are not read; use a bf16, fp8 or GGUF file."
        )
    scale = scale.float().reshape((1,) if scale.numel() == 1 else (rows, 1))
    if not scale.is_meta and not scale.isfinite().all():
        raise UnsupportedFile(f"{name} is not a finite number. The file is damaged; download it again.")
    return scale

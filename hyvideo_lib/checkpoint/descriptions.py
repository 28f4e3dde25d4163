"""What ComfyUI's files say of their layers' storage, read before any weight: beside the weights and in the metadata.

The loader's own sorting of a file's tensors (`quant.unpack`) is tried on tensors without numbers here, so that what the
recogniser says of a file's storage is what the loader will do with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BadInput, UnsupportedFile
from ..quant.comfy_quant import COMFY_QUANT, MAX_JSON_BYTES, METADATA_KEY, entry_in_tensor, table_in_metadata
from ..quant.schemes import StoredTensors, unpack
from .assemble import assemble, part_name
from .folder import map_header
from .keymaps import Source
from .read import Header, stored_as

if TYPE_CHECKING:
    from .examine import Findings

UNSCALED = ("none", "fp8_cast")  # schemes in which every tensor is what it seems
MAX_DESCRIPTION_BYTES = 16_000_000  # of all layers of a file together; 1,000 layers take about 80,000
_END = f".{COMFY_QUANT}"
_WEIGHT = ".weight"


def stated_formats(header: Header) -> set[str]:
    """The formats that a file names for its layers; none where nothing is said, or nothing that can be read."""
    return {
        str(formats["format"])
        for entry in (*_entries_in_metadata(header.metadata), *_entries_beside(header))
        if isinstance(entry, dict) and "format" in (formats := _with_params(entry))
    }


def with_own_layers(header: Header, prefix: str) -> Header:
    """A model's header with what the metadata say of its layers under the names that its tensors have there.

    header: tensors under bare names, whose descriptions have the file's own; prefix: what these begin with. A table
    that names no layer as the file does is taken to name them by their bare names.
    """
    layers = _layers(header.metadata)
    names = {info.name.rpartition(".")[0]: bare.rpartition(".")[0] for bare, info in header.tensors.items()}
    own = {
        names.get(name, name.removeprefix(prefix)): entry
        for name, entry in layers.items()
        if name in names or name.startswith(prefix)
    }
    return _with_layers(header, own) if own.keys() != layers.keys() and own else header


def own_contents(findings: Findings, tensors: Mapping[str, Tensor]) -> StoredTensors:
    """The tensors of a recognised file in Tencent's names, part by part, and what its header says of them.

    tensors: under the names of `findings.file_header`.
    """
    dtypes = {name: info.dtype for name, info in findings.header.tensors.items()}
    metadata = _translated(findings.file_header.metadata, findings.sources)
    return StoredTensors(assemble(tensors, findings.sources), dtypes, metadata)


def unpack_complaint(findings: Findings) -> str:
    """The loader's complaint about the storage of this file's weights, empty if it has none. Reads no weight."""
    if findings.quantization in UNSCALED:
        return ""
    header = findings.file_header
    try:
        tensors = {name: _without_numbers(info, header) for name, info in header.tensors.items()}
        unpack(findings.quantization, own_contents(findings, tensors | map_header(_descriptions(header))))
    except BadInput as error:
        return str(error)
    return ""


def _without_numbers(info: Any, header: Header) -> Tensor:
    dtype, shape = stored_as(info, header.path)
    return torch.empty(shape, dtype=dtype, device="meta")


def _descriptions(header: Header) -> Header:
    """The same with nothing but the layers' own descriptions. Raises UnsupportedFile if they are too long."""
    found = {name: info for name, info in header.tensors.items() if name.endswith(_END)}
    if sum(info.num_bytes for info in found.values()) > MAX_DESCRIPTION_BYTES:
        raise UnsupportedFile(
            f"What {header.path.name} says of its layers ({COMFY_QUANT}) is over {MAX_DESCRIPTION_BYTES} bytes long. "
            "The file is damaged; use another."
        )
    return replace(header, tensors=MappingProxyType(found))


def _entries_beside(header: Header) -> list[Any]:
    entries = []
    try:
        for name, description in map_header(_descriptions(header)).items():
            if description.numel() <= MAX_JSON_BYTES:
                entries.append(_entry(name, description))
    except (BadInput, OSError):  # whoever loads the file says what is wrong with it
        return []
    return entries


def _entry(name: str, description: Tensor) -> Any:
    try:
        return entry_in_tensor(name, description)
    except UnsupportedFile:
        return None


def _with_params(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    params = entry.get("params")
    return {**params, **entry} if isinstance(params, dict) else entry


def _layers(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    table = table_in_metadata(metadata.get(METADATA_KEY, ""))
    return table["layers"] if table else {}


def _entries_in_metadata(metadata: Mapping[str, str]) -> list[Any]:
    return list(_layers(metadata).values())


def _with_layers(header: Header, layers: Mapping[str, Any]) -> Header:
    return replace(header, metadata=MappingProxyType(_rewritten(header.metadata, layers)))


def _rewritten(metadata: Mapping[str, str], layers: Mapping[str, Any]) -> dict[str, str]:
    table = table_in_metadata(metadata[METADATA_KEY])
    return {**metadata, METADATA_KEY: json.dumps({**(table or {}), "layers": layers})}


def _translated(metadata: Mapping[str, str], sources: Mapping[str, tuple[Source, ...]]) -> Mapping[str, str]:
    """The metadata with the layers' names as `assemble` gives them. What it says of other layers stays as it is."""
    layers = _layers(metadata)
    names = {
        part.name.rpartition(".")[0]: part_name(ours.removesuffix(_WEIGHT), part)
        for ours, parts in sources.items()
        if ours.endswith(_WEIGHT)
        for part in parts
    }
    if not any(name in names for name in layers):
        return metadata
    return _rewritten(metadata, {names.get(name, name): entry for name, entry in layers.items()})

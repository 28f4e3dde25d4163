"""A LoRA file: its header resolved against a transformer's layers, then its tensors as views of the mapped file.

All that can be wrong with names and shapes is found in the header, before any tensor is looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from ..checkpoint.keymap_tables import SWAP_HALVES
from ..checkpoint.keymaps import apply_operation
from ..checkpoint.lora_families import told_model
from ..checkpoint.read import Header, TensorInfo, map_tensors, read_header
from ..errors import FileUnreadable, UnsupportedFile
from ..transformer import TransformerConfig
from .coverage import Coverage, listed
from .families import (
    ALPHA,
    BIAS_DIFF,
    DIFF,
    DOTTED_PREFIXES,
    DOWN,
    MODULE_NAMES,
    UNDERSCORED_PREFIXES,
    UP,
    refused_method,
    split_suffix,
)
from .names import LayerSize, Place, every_name, layer_sizes
from .scales import peft_scales, scale_from_alpha
from .update import LowRank, Update

RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)
"""HunyuanVideo's transformer, whose layers have every name that a LoRA for it can have."""
FLOATS = frozenset(("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"))
INTEGERS = frozenset(("int64", "int32", "int16", "int8", "uint8"))
"""An alpha may also be one of these."""


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA read for transformers of one config: what it adds to each layer, and the report on it.

    Its tensors are views of the mapped file; nothing is on a device.
    """

    config: TransformerConfig
    updates: Mapping[str, tuple[Update, ...]]
    coverage: Coverage


@dataclass(frozen=True)
class Module:
    """The tensors of one module of a file, by role."""

    name: str
    place: Place
    tensors: Mapping[str, TensorInfo]

    @property
    def rank(self) -> int | None:
        """None without a product."""
        return next(iter(self.tensors[DOWN].shape), 0) if DOWN in self.tensors else None


@dataclass
class Resolved:
    """A header's tensors by module, and the names of those that belong to none."""

    modules: list[Module] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def read_lora(path: str | Path, config: TransformerConfig) -> Lora:
    """Read a LoRA for a transformer of these sizes.

    Raises FileMissing, FileTruncated, FileUnreadable, and UnsupportedFile: no tensor fits a layer, shapes of another
    model, a method that is none of ours (DoRA, LoHa, LoKr, ...), NaN or infinity.
    """
    header = read_header(path)
    resolved = resolve(header, config)
    tensors = map_tensors(header)
    peft = peft_scales(header.metadata)
    updates: dict[str, list[Update]] = {}
    squares = 0.0
    for module in resolved.modules:
        update = _read_update(module, tensors, header, peft.scale(module.name, module.rank or 1))
        square = update.squared_norm()
        if not math.isfinite(square):
            raise UnsupportedFile(
                f"{header.path.name} holds NaN or infinity in {module.name}: its training failed, or the file is "
                "damaged. Use another copy or an earlier epoch of it."
            )
        squares += square
        updates.setdefault(module.place.layer, []).append(update)
    return Lora(
        config,
        {layer: tuple(parts) for layer, parts in updates.items()},
        _report(header, resolved, updates, len(layer_sizes(config)), math.sqrt(squares)),
    )


def check_names(path: str | Path) -> None:
    """Refuse what no HunyuanVideo transformer can use, by its names alone, while the transformer is not known yet.

    Raises as `read_lora` does; shapes are not looked at.
    """
    match_names(read_header(path), RELEASED)


def resolve(header: Header, config: TransformerConfig) -> Resolved:
    """Which layers the tensors of a header belong to, checked as far as a header tells. Raises as `read_lora`."""
    resolved, sizes = match_names(header, config), layer_sizes(config)
    for module in resolved.modules:
        _check_shapes(module, sizes[module.place.layer], header.path.name)
    _check_overlaps(resolved.modules, header.path.name)
    return resolved


def match_names(header: Header, config: TransformerConfig) -> Resolved:
    """Which layers the names of a header belong to. Raises UnsupportedFile and FileUnreadable."""
    name = header.path.name
    if header.format == "gguf":
        raise UnsupportedFile(f"{name} is a GGUF file. LoRAs are read as .safetensors; use that version of it.")
    told = told_model(header)
    if told and told.refusal:
        raise UnsupportedFile(f"{name} cannot be used. {told.refusal}")
    resolved, found = Resolved(), _group(header)
    names = every_name(config)
    for stem, roles in found.items():
        place = names.get(stem)
        if place is None or not roles.keys() - {ALPHA}:
            resolved.unmatched += [info.name for info in roles.values()]
        else:
            resolved.modules.append(Module(stem, place, roles))
    resolved.unmatched += [entry for entry in header.tensors if split_suffix(entry) is None]
    methods = Counter(method for entry in header.tensors if (method := refused_method(entry)))
    if methods:
        [(method, count)] = methods.most_common(1)
        raise UnsupportedFile(
            f"{name} is {method} ({count} of its {len(header.tensors)} tensors), which is not supported. Supported are "
            "LoRA and whole differences; extract one with the tool that made this file."
        )
    if not found:
        raise UnsupportedFile(
            f"{name} is no LoRA: none of its {len(header.tensors)} tensors is called like one's (.lora_down.weight, "
            f".lora_A.weight, .diff, ...), but {listed(list(header.tensors))}. Choose another file."
        )
    if not resolved.modules:
        raise UnsupportedFile(
            f"None of the {len(header.tensors)} tensors in {name} belongs to a layer of this transformer: "
            f"{listed(list(header.tensors))}. Use a LoRA for HunyuanVideo (double_blocks, single_blocks, or diffusers' "
            "transformer_blocks)."
        )
    return resolved


def _group(header: Header) -> dict[str, dict[str, TensorInfo]]:
    """Tensors by what stands before their suffix, and by role."""
    groups: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.tensors.items():
        parts = split_suffix(name)
        if parts is None:
            continue
        stem, role = parts
        roles = groups.setdefault(stem, {})
        if role in roles:
            raise FileUnreadable(f"{header.path.name} has {roles[role].name!r} and {name!r}, which are the same thing.")
        roles[role] = info
    return groups


def _check_shapes(module: Module, size: LayerSize, file: str) -> None:
    """Raises FileUnreadable for half a pair, UnsupportedFile for shapes or dtypes that do not fit the layer."""
    tensors = module.tensors
    if (DOWN in tensors) != (UP in tensors):
        there, missing = (DOWN, UP) if DOWN in tensors else (UP, DOWN)
        raise FileUnreadable(
            f"{file} has the {there} matrix of {module.name} but not its {missing} matrix. Download or save it again."
        )
    rows = module.place.stop - module.place.start
    rank = module.rank
    wanted = {DOWN: (rank, size.in_features), UP: (rows, rank), DIFF: (rows, size.in_features), BIAS_DIFF: (rows,)}
    for role, info in tensors.items():
        if info.dtype not in (FLOATS | INTEGERS if role == ALPHA else FLOATS):
            raise UnsupportedFile(
                f"{file} stores {info.name} as {info.dtype}, but a LoRA holds floating-point numbers."
            )
        if role == ALPHA:
            fits, accepted = info.numel == 1, "one number"
        else:
            accepted = " x ".join(map(str, wanted[role]))
            fits = info.numel > 0 and _flat(info.shape) == wanted[role]
        if not fits:
            raise UnsupportedFile(
                f"{file} does not fit this transformer: {info.name} is {' x '.join(map(str, info.shape)) or 'a number'}"
                f", but {module.place.layer} needs {accepted}. It was made for another model or variant."
            )


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a matrix, if the dimensions behind its second one are counted into that."""
    return shape if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _check_overlaps(modules: list[Module], file: str) -> None:
    """Raises FileUnreadable if two modules of a file speak of the same rows: its effect would double."""
    by_layer: dict[str, list[Module]] = {}
    for module in modules:
        by_layer.setdefault(module.place.layer, []).append(module)
    for layer, parts in by_layer.items():
        parts.sort(key=lambda module: module.place.start)
        for first, second in pairwise(parts):
            if second.place.start < first.place.stop:
                raise FileUnreadable(
                    f"{file} changes {layer} twice, as {first.name!r} and as {second.name!r}. It holds one LoRA in two "
                    "layouts, or two LoRAs; use a file with one."
                )


def _read_update(module: Module, tensors: Mapping[str, Tensor], header: Header, scale: float) -> Update:
    """What a module adds. scale: of its product, if no alpha stands beside it."""
    operation = SWAP_HALVES if module.place.swaps_halves else ""

    def read(role: str) -> Tensor | None:
        if role not in module.tensors:
            return None
        tensor = tensors[module.tensors[role].name]
        tensor = tensor.flatten(1) if tensor.ndim > 1 else tensor
        return tensor if role == DOWN else apply_operation(operation, tensor)

    down, up = read(DOWN), read(UP)
    if ALPHA in module.tensors:
        alpha = float(tensors[module.tensors[ALPHA].name].reshape(()))
        try:
            scale = scale_from_alpha(alpha, module.rank or 1)
        except ValueError as error:
            raise UnsupportedFile(
                f"{header.path.name}: {error} in {module.name}. The file is damaged; use another."
            ) from error
    return Update(
        module.place.start,
        module.place.stop,
        None if down is None or up is None else LowRank(down, up, scale),
        read(DIFF),
        read(BIAS_DIFF),
        module.name,
    )


def _report(
    header: Header, resolved: Resolved, updates: Mapping[str, list[Update]], all_layers: int, norm: float
) -> Coverage:
    products = [part.low_rank for parts in updates.values() for part in parts if part.low_rank]
    blocks = {kind: sorted(set(_indices(updates, f"{kind}_blocks."))) for kind in ("double", "single")}
    return Coverage(
        header.path.name,
        _family(resolved.modules),
        sum(len(module.tensors) for module in resolved.modules),
        tuple(resolved.unmatched),
        len(updates),
        all_layers,
        tuple(sorted({product.rank for product in products})),
        tuple(sorted({round(product.scale * product.rank, 6) for product in products})),
        tuple(blocks["double"]),
        tuple(blocks["single"]),
        tuple(sorted(layer for layer in updates if not layer.startswith(("double_blocks.", "single_blocks.")))),
        norm,
    )


def _indices(layers: Mapping[str, object], beginning: str) -> Iterator[int]:
    for layer in layers:
        if layer.startswith(beginning):
            yield int(layer.removeprefix(beginning).split(".")[0])


def _family(modules: list[Module]) -> str:
    """The commonest prefix, module names and suffix, in words. The empty prefix is told as none."""

    def commonest(values: Iterator[str]) -> str:
        [(value, _)] = Counter(values).most_common(1)
        return value

    # A name that several layouts share counts for the first of them, so any name that only one layout has decides.
    layouts = Counter(module.place.layout for module in modules)
    layout = next(name for name in reversed(MODULE_NAMES) if layouts[name])
    prefix = commonest(_prefix(module.name) for module in modules)
    suffix = commonest(
        module.tensors[role].name.removeprefix(module.name)
        for module in modules
        for role in (DOWN, DIFF, BIAS_DIFF)
        if role in module.tensors
    )
    return f"{prefix or 'no prefix'}, {MODULE_NAMES[layout]} module names, {suffix}"


def _prefix(name: str) -> str:
    prefixes = (*UNDERSCORED_PREFIXES, *sorted(DOTTED_PREFIXES, key=len, reverse=True))
    return next(prefix for prefix in prefixes if name.startswith(prefix))

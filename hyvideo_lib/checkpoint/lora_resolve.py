"""A LoRA's header resolved against a transformer's layers: which tensor belongs to which, and whether they fit.

All that can be wrong with names and shapes is found here, before any tensor is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import FileUnreadable, UnsupportedFile
from ..transformer import TransformerConfig
from .lora_layers import RELEASED, LayerSize, Place, layer_sizes
from .lora_match import Hit, match_modules
from .lora_roles import METHODS, Extent, fits_magnitude, flat, methods_of, stored_dtypes
from .lora_tensors import (
    ALPHA,
    BIAS_DIFF,
    DIFF,
    DOWN,
    MAGNITUDE,
    UP,
    UP_BIAS,
    refused_method,
    split_name,
)
from .lora_told import told_model
from .read import Header, TensorInfo

__all__ = ["RELEASED", "Module", "Resolved", "match_names", "resolve"]

_LEAVES = {"weight": None, "scale": None, "bias": BIAS_DIFF}
"""Last words of parameters that a difference may name, and the role that it has then, if another one."""
_BASE = ".base_layer."
"""In the names of the weights of the model itself, which PEFT's own state dicts hold as well."""
_METHOD_WORDS = "LoRA, LoHa, LoKr, DoRA, OFT and whole differences"


NAMES_TOLD = 10
"""Names of tensors that a message lists."""


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMES_TOLD
    return ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Module:
    """The tensors of one module of a file, by role. methods: those of `roles.METHODS` that they make up."""

    name: str
    hit: Hit
    tensors: Mapping[str, TensorInfo]
    methods: tuple[str, ...] = ()

    @property
    def place(self) -> Place:
        return self.hit.place

    def extent(self, size: LayerSize) -> Extent:
        return Extent(self.place.stop - self.place.start, size)

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None without a product."""
        shapes = {role: info.shape for role, info in self.tensors.items()}
        ranks = (METHODS[name].rank(shapes) for name in self.methods)
        return next((rank for rank in ranks if rank), None)


@dataclass
class Resolved:
    """A header's tensors by module, and the names of those that belong to none."""

    modules: list[Module] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def resolve(header: Header, config: TransformerConfig) -> Resolved:
    """Which layers the tensors of a header belong to, checked as far as a header tells.

    Raises UnsupportedFile and FileUnreadable.
    """
    resolved, sizes = match_names(header, config), layer_sizes(config)
    for module in resolved.modules:
        _check_shapes(module, sizes[module.place.layer], header.path.name)
    _check_overlaps(resolved.modules, header.path.name)
    return resolved


def match_names(header: Header, config: TransformerConfig) -> Resolved:
    """Which layers the names of a header belong to; shapes are not looked at. Raises as `resolve`."""
    file = header.path.name
    if header.format == "gguf":
        raise UnsupportedFile(f"{file} is a GGUF file. LoRAs are read as .safetensors; use that version of it.")
    told = told_model(header)
    if told and told.refusal:
        raise UnsupportedFile(f"{file} cannot be used. {told.refusal}")
    found = _group(header)
    hits = match_modules(found, config)
    resolved = Resolved(unmatched=[entry for entry in header.tensors if split_name(entry) is None])
    for stem, roles in found.items():
        if stem not in hits or not roles.keys() - {ALPHA}:
            resolved.unmatched += [info.name for info in roles.values()]
        else:
            resolved.modules.append(Module(stem, hits[stem], roles))
    _check_methods(header)
    if not found:
        raise UnsupportedFile(
            f"{file} is no LoRA: none of its {len(header.tensors)} tensors is called like one's (.lora_down.weight, "
            f".lora_A.weight, .lokr_w1, .diff, ...), but {listed(list(header.tensors))}. Choose another file."
        )
    if not resolved.modules:
        raise UnsupportedFile(
            f"None of the {len(header.tensors)} tensors in {file} belongs to a layer of this transformer: "
            f"{listed(list(header.tensors))}. Use a LoRA for HunyuanVideo (double_blocks, single_blocks, or diffusers' "
            "transformer_blocks)."
        )
    _check_strangers(resolved, file)
    resolved.modules = [_with_methods(module, file) for module in resolved.modules]
    return resolved


def _group(header: Header) -> dict[str, dict[str, TensorInfo]]:
    """Tensors by what stands before their suffix, and by role. Raises FileUnreadable, UnsupportedFile."""
    file = header.path.name
    groups: dict[str, dict[str, TensorInfo]] = {}
    adapters: dict[str, str] = {}
    for name, info in header.tensors.items():
        parts = split_name(name)
        if parts is None:
            continue
        stem, role = _without_leaf(parts.stem, parts.role)
        if parts.adapter:
            adapters.setdefault(parts.adapter, name)
        if len(adapters) > 1:
            (one, example), (two, other) = adapters.items()
            raise UnsupportedFile(
                f"{file} holds two adapters, {one!r} ({example}) and {two!r} ({other}), which would act one on top of "
                "the other. Save them to a file each, and give the one that you want, or both."
            )
        roles = groups.setdefault(stem, {})
        if role in roles:
            raise FileUnreadable(f"{file} has {roles[role].name!r} and {name!r}, which are the same thing.")
        roles[role] = info
    return groups


def _without_leaf(stem: str, role: str) -> tuple[str, str]:
    """The module and the role of a difference that names the parameter as well, as in `norm.scale.diff`."""
    module, _, leaf = stem.rpartition(".")
    if role != DIFF or leaf not in _LEAVES or not module:
        return stem, role
    return module, _LEAVES[leaf] or role


def _check_methods(header: Header) -> None:
    """Raises UnsupportedFile for a method that is not applied here."""
    methods = Counter(method for entry in header.tensors if (method := refused_method(entry)))
    if methods:
        [(method, count)] = methods.most_common(1)
        raise UnsupportedFile(
            f"{header.path.name} is {method} ({count} of its {len(header.tensors)} tensors), which is not supported. "
            f"Supported are {_METHOD_WORDS}. Have the program that trained it merge it into the transformer and use "
            "that file, or train it again by one of these."
        )


def _check_strangers(resolved: Resolved, file: str) -> None:
    """Raises UnsupportedFile for a tensor beside the matrices of a layer that is not understood."""
    known = {module.name for module in resolved.modules}
    for name in resolved.unmatched:
        above = name.rpartition(".")[0]
        if _BASE not in name and (above in known or above.rpartition(".")[0] in known):
            raise UnsupportedFile(
                f"{file} has {name}, of a layer that it changes, but nothing here knows what that means: used without "
                "it, the LoRA would be another one. Supported are "
                f"{_METHOD_WORDS}; save it again as one of these, or have its trainer merge it into the transformer."
            )


def _with_methods(module: Module, file: str) -> Module:
    """Raises FileUnreadable for a module whose tensors do not make a whole."""
    roles = tuple(module.tensors)
    methods = tuple(methods_of(roles))
    own = set(roles) - {ALPHA, BIAS_DIFF}
    if (methods and (MAGNITUDE not in own or len(methods) == 1)) or not own:
        return Module(module.name, module.hit, module.tensors, methods)
    if (DOWN in own) != (UP in own) and own <= {DOWN, UP, UP_BIAS, MAGNITUDE, DIFF}:
        there, missing = (DOWN, UP) if DOWN in own else (UP, DOWN)
        raise FileUnreadable(
            f"{file} has the {there} matrix of {module.name} but not its {missing} matrix. Download or save it again."
        )
    names = ", ".join(info.name.removeprefix(module.name).lstrip("._") for info in module.tensors.values())
    raise FileUnreadable(
        f"{file} has {names} of {module.name}, which do not make a whole of any method ({_METHOD_WORDS}). Download or "
        "save it again."
    )


def _check_shapes(module: Module, size: LayerSize, file: str) -> None:
    """Raises UnsupportedFile for shapes or dtypes that do not fit the layer."""
    extent = module.extent(size)
    shapes = {role: info.shape for role, info in module.tensors.items()}
    for role, info in module.tensors.items():
        if info.dtype not in stored_dtypes(role):
            raise UnsupportedFile(
                f"{file} stores {info.name} as {info.dtype}, but a LoRA holds floating-point numbers."
            )
    _check_single(module, extent, shapes, file)
    for name in module.methods:
        method = METHODS[name]
        if size.is_vector and name != "whole difference":
            raise UnsupportedFile(
                f"{file} does not fit this transformer: it has {name} for {module.place.layer}, whose weight is a "
                "vector, which only differences (.diff, .w_norm) can change."
            )
        if not method.fits(shapes, extent):
            raise UnsupportedFile(_misfit(module, name, extent, shapes, file))


def _check_single(module: Module, extent: Extent, shapes: Mapping[str, tuple[int, ...]], file: str) -> None:
    """The tensors that stand beside a method's own."""
    rows = extent.rows
    for role, info in module.tensors.items():
        if role == ALPHA:
            fits, accepted = info.numel == 1, "one number"
        elif role in (BIAS_DIFF, UP_BIAS):
            fits, accepted = info.shape == (rows,), f"{rows}" if extent.size.has_bias else "nothing: it has no bias"
            fits = fits and extent.size.has_bias
        elif role == MAGNITUDE:
            fits = fits_magnitude(info.shape, extent)
            accepted = f"a length for each of {rows} rows or {extent.width} columns"
        else:
            continue
        if not fits:
            raise UnsupportedFile(_needs(module, info, accepted, file))


def _needs(module: Module, info: TensorInfo, accepted: str, file: str) -> str:
    return (
        f"{file} does not fit this transformer: {info.name} is {_spelled(info.shape)}, but {module.place.layer} needs "
        f"{accepted}. It was made for another model or variant."
    )


def _misfit(module: Module, method: str, extent: Extent, shapes: Mapping[str, tuple[int, ...]], file: str) -> str:
    rank = next(iter(shapes.get(DOWN, ())), 0)
    whole = (extent.rows,) if extent.size.is_vector else (extent.rows, extent.width)
    exact: dict[str, dict[str, tuple[int, ...]]] = {
        "LoRA": {DOWN: (rank, extent.width), UP: (extent.rows, rank)},
        "whole difference": {DIFF: whole},
    }
    for role, wanted in exact.get(method, {}).items():
        if flat(shapes[role]) != wanted or 0 in wanted:
            return _needs(module, module.tensors[role], _spelled(wanted), file)
    parts = ", ".join(f"{info.name} {_spelled(info.shape)}" for info in module.tensors.values())
    return (
        f"{file} does not fit this transformer: {module.place.layer} needs a change of {_spelled(whole)}, which its "
        f"{method} ({parts}) is not. It was made for another model or variant."
    )


def _spelled(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


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

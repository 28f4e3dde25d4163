"""A LoRA file for transformers of one config: its tensors as views of the mapped file, and the report on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ..checkpoint.keymap_tables import SWAP_HALVES
from ..checkpoint.keymaps import apply_operation
from ..checkpoint.lora_layers import MODULE_NAMES, layer_sizes
from ..checkpoint.lora_resolve import RELEASED, Module, Resolved, match_names, resolve
from ..checkpoint.lora_roles import Extent
from ..checkpoint.lora_tensors import ALPHA, BIAS_DIFF, MAGNITUDE, OFT_BLOCKS, UP_BIAS, method_names
from ..checkpoint.lora_told import training_notes
from ..checkpoint.read import Header, map_tensors, read_header
from ..errors import UnsupportedFile
from ..transformer import TransformerConfig
from .alpha_sources import read_alpha_sources
from .change import Change, SwappedHalves, Whole
from .coverage import Coverage
from .files import find_lora
from .making import MAKERS, decomposed
from .scales import Scales
from .update import LowRank, Update


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA read for transformers of one config: what it adds to each layer, and the report on it.

    Its tensors are views of the mapped file; nothing is on a device.
    """

    config: TransformerConfig
    updates: Mapping[str, tuple[Update, ...]]
    coverage: Coverage


def read_lora(path: str | Path, config: TransformerConfig) -> Lora:
    """Read a LoRA for a transformer of these sizes: a file, or a folder as PEFT and diffusers write them.

    Raises FileMissing, FileTruncated, FileUnreadable, and UnsupportedFile: no tensor fits a layer, shapes of another
    model, a method that is none of ours, NaN or infinity.
    """
    header = read_header(find_lora(path))
    resolved = resolve(header, config)
    sizes = layer_sizes(config)
    ranks = {module.hit.name: module.rank for module in resolved.modules if module.rank}
    reader = _Reader(header, map_tensors(header), Scales(read_alpha_sources(header, ranks)))
    updates: dict[str, list[Update]] = {}
    for module in resolved.modules:
        update = reader.update(module, module.extent(sizes[module.place.layer]))
        if not update.is_finite():
            raise UnsupportedFile(
                f"{header.path.name} holds NaN or infinity in {module.name}: its training failed, or the file is "
                "damaged. Use another copy or an earlier epoch of it."
            )
        updates.setdefault(module.place.layer, []).append(update)
    return Lora(
        config,
        {layer: tuple(parts) for layer, parts in updates.items()},
        replace(
            _report(header, resolved, updates, len(sizes)),
            alpha_sources=tuple(reader.stated_by),
            notes=(*training_notes(header), *reader.scales.notes),
        ),
    )


def check_names(path: str | Path) -> None:
    """Refuse what no HunyuanVideo transformer can use, by its names alone, while the transformer is not known yet.

    Raises as `read_lora` does; shapes are not looked at.
    """
    match_names(read_header(find_lora(path)), RELEASED)


@dataclass(frozen=True)
class _Reader:
    """Updates out of a file's tensors. stated_by: the places that stated a scale so far."""

    header: Header
    tensors: Mapping[str, Tensor]
    scales: Scales
    stated_by: dict[str, None] = field(default_factory=dict)

    def update(self, module: Module, extent: Extent) -> Update:
        """What a module adds."""
        place = module.place
        tensors = {role: self.tensors[info.name] for role, info in module.tensors.items()}
        scale = self._scale(module)
        low_rank: LowRank | None = None
        diff: Tensor | None = None
        change: Change | None = None
        for name in module.methods:
            made = MAKERS[name](tensors, extent, self._bound(module) if OFT_BLOCKS in tensors else scale)
            if MAGNITUDE in tensors:
                change = _in_our_order(decomposed(made, tensors[MAGNITUDE]), place.swaps_halves)
            elif isinstance(made, LowRank):
                low_rank = LowRank(made.down, _rows_in_our_order(made.up, place.swaps_halves), made.scale)
            elif isinstance(made, Whole):
                whole = made.diff if extent.size.is_vector else made.diff.flatten(1)
                diff = _rows_in_our_order(whole, place.swaps_halves)
            else:
                change = _in_our_order(made, place.swaps_halves)
        bias = self._bias(tensors, scale)
        if bias is not None:
            bias = _rows_in_our_order(bias, place.swaps_halves)
        return Update(place.start, place.stop, low_rank, diff, bias, module.name, change)

    def _scale(self, module: Module) -> float:
        """What a module's product is multiplied by; 1 without one."""
        rank = module.rank
        if rank is None:
            return 1.0
        alpha = self._alpha(module.tensors[ALPHA].name) if ALPHA in module.tensors else None
        scale = self.scales.of(module.hit.name, rank, alpha)
        self.stated_by[scale.source] = None
        return scale.value

    def _alpha(self, name: str) -> float:
        return float(self.tensors[name].reshape(()))

    def _bound(self, module: Module) -> float:
        """OFT's alpha, which is no scale."""
        bound = self._alpha(module.tensors[ALPHA].name) if ALPHA in module.tensors else 0.0
        if not math.isfinite(bound):
            raise UnsupportedFile(
                f"{self.header.path.name}: alpha is {bound} in {module.name}. The file is damaged; use another."
            )
        return bound

    @staticmethod
    def _bias(tensors: Mapping[str, Tensor], scale: float) -> Tensor | None:
        """What is added to the bias: a difference as it is, a product's own bias scaled as the product."""
        parts = [tensors[BIAS_DIFF]] if BIAS_DIFF in tensors else []
        if UP_BIAS in tensors:
            parts.append(tensors[UP_BIAS].float() * scale)
        return None if not parts else parts[0] if len(parts) == 1 else parts[0].float() + parts[1]


def _rows_in_our_order(tensor: Tensor, swaps_halves: bool) -> Tensor:
    return apply_operation(SWAP_HALVES if swaps_halves else "", tensor)


def _in_our_order(change: Change, swaps_halves: bool) -> Change:
    return SwappedHalves(change) if swaps_halves else change


def _report(header: Header, resolved: Resolved, updates: Mapping[str, list[Update]], all_layers: int) -> Coverage:
    parts = [part for each in updates.values() for part in each]
    products = [part.low_rank for part in parts if part.low_rank]
    squares = [part.squared_norm() for part in parts]
    blocks = {kind: sorted(set(_indices(updates, f"{kind}_blocks."))) for kind in ("double", "single")}
    return Coverage(
        header.path.name,
        _family(resolved.modules),
        method_names(role for module in resolved.modules for role in module.tensors),
        sum(len(module.tensors) for module in resolved.modules),
        tuple(resolved.unmatched),
        len(updates),
        all_layers,
        tuple(sorted({module.rank for module in resolved.modules if module.rank})),
        tuple(sorted({round(product.scale * product.rank, 6) for product in products})),
        tuple(blocks["double"]),
        tuple(blocks["single"]),
        tuple(sorted(layer for layer in updates if not layer.startswith(("double_blocks.", "single_blocks.")))),
        None if None in squares else math.sqrt(sum(filter(None, squares))),
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
    prefix = commonest(module.hit.prefix for module in modules)
    ends = (
        info.name.removeprefix(module.name)
        for module in modules
        for role, info in module.tensors.items()
        if role != ALPHA
    )
    suffix = commonest(ends)
    return f"{prefix or 'no prefix'}, {MODULE_NAMES[layout]} module names, {suffix}"

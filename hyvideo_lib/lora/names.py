"""Where a LoRA's module is in the model: every name it may have, made from the model's own list of layers.

Names with underscores for dots cannot be taken apart again (`img_attn_qkv` has some of its own), so nothing is parsed:
each layer's name is written in every layout and with every prefix, and a file's names are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from torch import nn

from ..checkpoint.blueprint import build_meta_transformer
from ..checkpoint.keymap_tables import SWAP_HALVES
from ..checkpoint.keymaps import part_rows, their_names
from ..transformer import HunyuanVideoTransformer, TransformerConfig
from .families import DOTTED_PREFIXES, MODULE_NAMES, UNDERSCORED_PREFIXES


@dataclass(frozen=True)
class LayerSize:
    """Of a layer that can have a LoRA. in_features counts a convolution's kernel as well."""

    out_features: int
    in_features: int


@dataclass(frozen=True)
class Place:
    """The rows start..stop of a layer, as one name in one layout speaks of them.

    swaps_halves: the file has the two halves of these rows the other way round.
    """

    layer: str
    start: int
    stop: int
    layout: str
    swaps_halves: bool = False


def adaptable_layers(model: nn.Module) -> dict[str, LayerSize]:
    """The layers that can have a LoRA, by path: those with `adapters`, whatever their weights are stored as."""
    sizes = {}
    for name, layer in model.named_modules():
        if not hasattr(layer, "adapters"):
            continue
        if isinstance(layer, nn.Linear):
            sizes[name] = LayerSize(layer.out_features, layer.in_features)
        elif isinstance(layer, nn.Conv3d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.kernel_size[2]
            sizes[name] = LayerSize(layer.out_channels, layer.in_channels * kernel)
    return sizes


@lru_cache(maxsize=8)
def layer_sizes(config: TransformerConfig) -> Mapping[str, LayerSize]:
    """`adaptable_layers` of a transformer of these sizes."""
    model: HunyuanVideoTransformer = build_meta_transformer(config)
    return MappingProxyType(adaptable_layers(model))


def layer_places(layer: str, out_features: int, layout: str, hidden_size: int) -> list[tuple[str, Place]]:
    """(name, place) for each module that a layer is in a layout: one, or one for each part of its rows."""
    sources = their_names("transformer", layout, layer)
    places, start = [], 0
    for source, rows in zip(
        sources, part_rows(out_features, len(sources), hidden_size) if sources else (), strict=True
    ):
        place = Place(layer, start, start + rows, layout, source.operation == SWAP_HALVES)
        places.append((source.name, place))
        start += rows
    return places


@lru_cache(maxsize=8)
def every_name(config: TransformerConfig) -> Mapping[str, Place]:
    """Every name that a LoRA file may have for a layer of the model or for a part of it, and what it speaks of."""
    table: dict[str, Place] = {}
    for layout in MODULE_NAMES:
        for layer, size in layer_sizes(config).items():
            for name, place in layer_places(layer, size.out_features, layout, config.hidden_size):
                flat = name.replace(".", "_")
                spelled = [prefix + name for prefix in DOTTED_PREFIXES] + [p + flat for p in UNDERSCORED_PREFIXES]
                for entry in spelled:
                    table.setdefault(entry, place)
    return MappingProxyType(table)

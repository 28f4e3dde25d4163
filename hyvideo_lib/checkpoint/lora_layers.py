"""The layers that a LoRA can act on, and every name that they have: made from the model's own list of layers.

Names with underscores for dots cannot be taken apart again (`img_attn_qkv` has some of its own), so nothing is parsed:
each layer's name is written in every layout, dots and underscores are made equal, and a file's names are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from torch import nn

from ..transformer import HunyuanVideoTransformer, TransformerConfig
from .blueprint import build_meta_transformer
from .keymap_tables import SWAP_HALVES
from .keymaps import part_rows, their_names

MODULE_NAMES = {"tencent": "Tencent's", "comfyui": "ComfyUI's", "diffusers": "diffusers'"}
"""Layouts that modules are named in, and whose names they are."""
RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)
"""HunyuanVideo's transformer, whose layers have every name that a LoRA for it can have."""

Words = tuple[str, ...]
_MARK = re.compile(r"[._]+")


@dataclass(frozen=True)
class LayerSize:
    """Of a layer that a LoRA can act on. in_features counts a convolution's kernel as well.

    is_vector: its weight is a vector of out_features numbers, a norm's gain; in_features is 1 then.
    """

    out_features: int
    in_features: int
    has_bias: bool = True
    is_vector: bool = False


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
    """The layers that a LoRA can act on, by path: those with `adapters`, whatever their weights are stored as."""
    sizes = {}
    for name, layer in model.named_modules():
        if not hasattr(layer, "adapters"):
            continue
        has_bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, nn.Linear):
            sizes[name] = LayerSize(layer.out_features, layer.in_features, has_bias)
        elif isinstance(layer, nn.Conv3d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.kernel_size[2]
            sizes[name] = LayerSize(layer.out_channels, layer.in_channels * kernel, has_bias)
        elif isinstance(layer, nn.Module):
            sizes[name] = LayerSize(layer.get_parameter("weight").numel(), 1, has_bias, is_vector=True)
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


def words_of(name: str) -> Words:
    """The words of a module's name, dots and underscores being equal."""
    return tuple(word for word in _MARK.split(name) if word)


@lru_cache(maxsize=8)
def every_name(config: TransformerConfig) -> Mapping[Words, Mapping[str, Place]]:
    """The names of the layers of the model, or of parts of them, in every layout, and their places; by their words.

    Names of the same words, in several layouts, have the same place but for the layout.
    """
    table: dict[Words, dict[str, Place]] = {}
    for layout in MODULE_NAMES:
        for layer, size in layer_sizes(config).items():
            for name, place in layer_places(layer, size.out_features, layout, config.hidden_size):
                table.setdefault(words_of(name), {}).setdefault(name, place)
    return MappingProxyType(table)

"""Names of known layers spelled otherwise: with underscores for dots, all or some, or with words that all names share.

For a file that is not known as it is, or lacks what its other names hold. Every name whose words end in those of a
known layer becomes that layer's name; nothing else is touched, and each TensorInfo keeps the file's own name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from ..text import ClipEncoderConfig, LlamaEncoderConfig
from ..vae import VAEConfig
from .blueprint import clip_contents, llama_contents, vae_contents
from .header import Header
from .keymaps import COMPANIONS, their_names
from .lora_layers import MODULE_NAMES, RELEASED, layer_places, layer_sizes

_LEAVES = COMPANIONS | {"weight", "bias", "scale"}
MAX_NAMES = 6_000
"""Of a file that is looked at so; the largest known one has under 4,000."""
_WORD = re.compile(r"[^._]+")
_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")
_MARK = "#"
_PART_OF_A_NAME = "single"
"""Before `transformer_blocks` it is no prefix, but the name of other blocks."""
Key = tuple[str, ...]


def respellings(header: Header) -> Iterator[Header]:
    """The header with known layers under the names of each layout, where that changes it and no two become one."""
    if len(header.tensors) > MAX_NAMES:
        return
    dropped = _shared_words(header.tensors)
    for layout in MODULE_NAMES:
        found = {name: _find_layer(name, _layers(layout), dropped) for name in header.tensors}
        prefixes = sorted({hit[0] for hit in found.values() if hit and hit[0]}, key=len, reverse=True)
        names = {name: ".".join([*hit[0], hit[1]]) if hit else _behind(name, prefixes) for name, hit in found.items()}
        is_other = any(name != other for name, other in names.items())
        if is_other and len(set(names.values())) == len(names):
            tensors = {names[name]: info for name, info in header.tensors.items()}
            yield replace(header, tensors=MappingProxyType(tensors))


def _behind(name: str, prefixes: Iterable[Key]) -> str:
    """A name that is no layer's, with its prefix spelled as the layers have it: it stays the same model's."""
    words = list(_WORD.finditer(name))
    for prefix in prefixes:
        if len(words) > len(prefix) and tuple(word[0] for word in words[: len(prefix)]) == prefix:
            return ".".join([*prefix, name[words[len(prefix)].start() :]])
    return name


@lru_cache(maxsize=4)
def _layers(layout: str) -> Mapping[Key, str]:
    """The names of all layers in a layout by their words, numbers as a mark; in the names `{}` for the numbers.

    Layouts are apart, for some of their names are of the same words. What has no such layout has its own names.
    """
    modules = {
        name
        for layer, size in layer_sizes(RELEASED).items()
        for name, _ in layer_places(layer, size.out_features, layout, RELEASED.hidden_size)
    }
    vae = {name.rpartition(".")[0] for name in vae_contents(VAEConfig()).needed}
    modules |= {source.name for name in vae for source in their_names("vae", layout, name)}
    for contents in (llama_contents(LlamaEncoderConfig()), clip_contents(ClipEncoderConfig())):
        modules |= {name.rpartition(".")[0] for name in contents.needed}
    return MappingProxyType({_key(_WORD.findall(name)): _NUMBER.sub("{}", name) for name in sorted(modules)})


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    return frozenset(word for layout in MODULE_NAMES for key in _layers(layout) for word in key)


def _key(words: Iterable[str]) -> Key:
    return tuple(_MARK if word.isdigit() else word for word in words)


def _shared_words(names: Iterable[str]) -> frozenset[str]:
    """Words that all names with a number have, and no layer."""
    known, counts, total = _vocabulary(), Counter[str](), 0
    for name in names:
        words = set(_WORD.findall(name))
        if any(word.isdigit() for word in words):
            total += 1
            counts.update(word for word in words - known - _LEAVES if not word.isdigit())
    return frozenset(word for word, count in counts.items() if count == total)


def _find_layer(name: str, layers: Mapping[Key, str], dropped: frozenset[str]) -> tuple[Key, str] | None:
    """(words before a layer's name, the tensor's name in the layer's own spelling); None if it is no layer's."""
    module, _, leaf = name.rpartition(".")
    if leaf not in _LEAVES:
        module, _, leaf = name.rpartition("_")
    words = _WORD.findall(module)
    if leaf not in _LEAVES:
        return None
    for place, first in enumerate(words):
        rest = [word for word in words[place:] if word not in dropped]
        template = None if first in dropped else layers.get(_key(rest))
        if template is not None and words[place - 1 : place] != [_PART_OF_A_NAME]:
            return tuple(words[:place]), f"{template.format(*(word for word in rest if word.isdigit()))}.{leaf}"
    return None

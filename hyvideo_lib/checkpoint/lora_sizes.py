"""A LoRA's modules held to the layers of HunyuanVideo's transformer: which they are, and whether their sizes fit.

The loader compares a LoRA with the transformer that it is for. Here that one is not known, so a LoRA fits if there is
a width of the model at which all of its matrices fit at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from .header import TensorInfo
from .lora_layers import RELEASED, Place, layer_sizes
from .lora_match import Hit
from .lora_roles import flat
from .lora_tensors import ALPHA, BIAS_DIFF, DIFF, DOWN, UP, split_name
from .read import Header

PATCH = "img_in.proj"


@dataclass(frozen=True)
class PlainModule:
    """The tensors of plain LoRA and of differences in a module that HunyuanVideo has, by role."""

    path: str
    place: Place
    tensors: Mapping[str, TensorInfo]


def plain_modules(header: Header, hits: Mapping[str, Hit]) -> list[PlainModule]:
    """Those of matrices. hits: the layers of a header's modules, by `lora_match.match_modules`."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.tensors.items():
        parts = split_name(name)
        if parts and parts.stem in hits and parts.role in (DOWN, UP, DIFF, BIAS_DIFF, ALPHA):
            found.setdefault(parts.stem, {})[parts.role] = info
    sizes = layer_sizes(RELEASED)
    return [
        PlainModule(path, hits[path].place, tensors)
        for path, tensors in found.items()
        if tensors.keys() - {ALPHA} and not sizes[hits[path].place.layer].is_vector
    ]


def widths(modules: Iterable[PlainModule]) -> Counter[int]:
    """How wide the model is, by each size of the LoRA that tells it; the commonest answer is the likeliest."""
    counts = Counter[int]()
    for module in modules:
        for role, wanted in _wanted(module, RELEASED.hidden_size).items():
            found = flat(module.tensors[role].shape) if role in module.tensors else ()
            for size, released in zip(found, wanted, strict=False):
                if released and released % RELEASED.hidden_size == 0:
                    counts[size * RELEASED.hidden_size // released] += 1
    return counts


def misfit(modules: Iterable[PlainModule]) -> str:
    """The first thing in a LoRA that fits no HunyuanVideo of whatever width, in sentences; empty if all fits."""
    modules = list(modules)
    common = widths(modules).most_common(1)
    width = common[0][0] if common else RELEASED.hidden_size
    for module in modules:
        if complaint := _shaped(module, width):
            return complaint
    return _overlap(modules)


def _wanted(module: PlainModule, width: int) -> dict[str, tuple[int | None, ...]]:
    """The shapes that the tensors of a module have in a model of some width. None: any size; 0: the rank."""

    def scaled(size: int) -> int | None:
        if width == RELEASED.hidden_size:
            return size
        return size * width // RELEASED.hidden_size if size % RELEASED.hidden_size == 0 else None

    out = scaled(module.place.stop - module.place.start)
    columns = layer_sizes(RELEASED)[module.place.layer].in_features
    into = None if module.place.layer == PATCH else scaled(columns)  # forms of the model take more channels
    return {DOWN: (0, into), UP: (out, 0), DIFF: (out, into), BIAS_DIFF: (out,)}


def _shaped(module: PlainModule, width: int) -> str:
    rank = next(iter(module.tensors[DOWN].shape), 0) if DOWN in module.tensors else 0
    for role, wanted in _wanted(module, width).items():
        if role not in module.tensors:
            continue
        info = module.tensors[role]
        sizes = [rank if size == 0 else size for size in wanted]
        found = flat(info.shape)
        fits = len(found) == len(sizes) and all(size in (None, have) for size, have in zip(sizes, found, strict=True))
        if not fits or not info.numel:
            accepted = " x ".join("any" if size is None else str(size) for size in sizes)
            return (
                f"{info.name} is {' x '.join(map(str, info.shape)) or 'a number'}, but {module.place.layer} needs "
                f"{accepted}: the LoRA was made for another model or variant."
            )
    if ALPHA in module.tensors and module.tensors[ALPHA].numel != 1:
        return f"{module.tensors[ALPHA].name} is no single number. Download or save it again."
    return ""


def _overlap(modules: list[PlainModule]) -> str:
    """A complaint if two modules speak of the same rows: the effect would double."""
    places = sorted(modules, key=lambda module: (module.place.layer, module.place.start))
    for first, second in pairwise(places):
        if first.place.layer == second.place.layer and second.place.start < first.place.stop:
            return (
                f"It changes {first.place.layer} twice, as {first.path!r} and as {second.path!r}. It holds one LoRA in "
                "two layouts, or two LoRAs; use a file with one."
            )
    return ""

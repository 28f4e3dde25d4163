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
from .lora_layers import RELEASED, LayerSize, Place, layer_sizes
from .lora_match import Hit
from .lora_roles import METHODS, Extent, methods_of, stored_dtypes
from .lora_tensors import ALPHA, split_name
from .read import Header

PATCH = "img_in.proj"


@dataclass(frozen=True)
class SizedModule:
    """A module of HunyuanVideo's with a matrix: its tensors by role, and the methods that these make up."""

    path: str
    place: Place
    tensors: Mapping[str, TensorInfo]
    methods: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {role: info.shape for role, info in self.tensors.items()}

    @property
    def made(self) -> list[tuple[int | None, int | None]]:
        """Rows and columns that its tensors are of, as far as they tell; an entry for each method."""
        shapes = self.shapes
        return [METHODS[method].made(shapes) for method in self.methods]


def sized_modules(header: Header, hits: Mapping[str, Hit]) -> list[SizedModule]:
    """hits: the layers of a header's modules, by `lora_match.match_modules`."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.tensors.items():
        parts = split_name(name)
        if parts and parts.stem in hits:
            found.setdefault(parts.stem, {})[parts.role] = info
    sizes = layer_sizes(RELEASED)
    return [
        SizedModule(path, hits[path].place, tensors, tuple(methods_of(tuple(tensors))))
        for path, tensors in found.items()
        if not sizes[hits[path].place.layer].is_vector
    ]


def widths(modules: Iterable[SizedModule]) -> Counter[int]:
    """How wide the model is, by each size of the LoRA that tells it, and how many of them say so."""
    counts = Counter[int]()
    for module in modules:
        released = _released(module)
        for made in module.made:
            for size, whole in zip(made, released, strict=True):
                if size and whole % RELEASED.hidden_size == 0 and size * RELEASED.hidden_size % whole == 0:
                    counts[size * RELEASED.hidden_size // whole] += 1
    return counts


def likely_width(modules: Iterable[SizedModule]) -> int:
    """The commonest answer, of equals the released model's; that, too, where nothing tells."""
    counts = widths(modules)
    released = RELEASED.hidden_size
    return max(counts, key=lambda width: (counts[width], width == released), default=released)


def misfit(modules: Iterable[SizedModule]) -> str:
    """The first thing in a LoRA that fits no HunyuanVideo of whatever width, in sentences; empty if all fits."""
    modules = list(modules)
    width = likely_width(modules)
    for module in modules:
        if complaint := _stored(module) or _shaped(module, width):
            return complaint
    return _overlap(modules)


def _released(module: SizedModule) -> tuple[int, int]:
    """Rows and columns of the module in the released model."""
    return module.place.stop - module.place.start, layer_sizes(RELEASED)[module.place.layer].in_features


def _stored(module: SizedModule) -> str:
    for role, info in module.tensors.items():
        if info.dtype not in stored_dtypes(role):
            return f"It stores {info.name} as {info.dtype}, but a LoRA holds floating-point numbers."
        if role == ALPHA and info.numel != 1:
            return f"{info.name} is {list(info.shape)}, but needs one number. Download or save it again."
    return ""


def _shaped(module: SizedModule, width: int) -> str:
    """What does not fit in a model of that width, where that tells the size of the module's matrix."""

    def scaled(size: int) -> int | None:
        return size * width // RELEASED.hidden_size if size % RELEASED.hidden_size == 0 else None

    rows, columns = map(scaled, _released(module))
    for method, (own_rows, own_columns) in zip(module.methods, module.made, strict=True):
        extent = Extent(rows or own_rows or 0, LayerSize(rows or 0, columns or own_columns or 0))
        if not METHODS[method].fits(module.shapes, extent):
            parts = ", ".join(f"{info.name} {' x '.join(map(str, info.shape))}" for info in module.tensors.values())
            return (
                f"Its {method} for {module.path} ({parts}) fits no HunyuanVideo {width} wide: it was made for another "
                "model or variant."
            )
    return ""


def _overlap(modules: list[SizedModule]) -> str:
    """A complaint if two modules speak of the same rows: the effect would double."""
    places = sorted(modules, key=lambda module: (module.place.layer, module.place.start))
    for first, second in pairwise(places):
        if first.place.layer == second.place.layer and second.place.start < first.place.stop:
            return (
                f"It changes {first.place.layer} twice, as {first.path!r} and as {second.path!r}. It holds one LoRA in "
                "two layouts, or two LoRAs; use a file with one."
            )
    return ""

"""The mapped tensors of a file in Tencent's names: renamed, put in order, and left where they lie if that can be.

A weight of several parts is given part by part (`<module>.parts.0.weight`), for a JoinedLinear; so is what belongs to
a quantised weight. Biases, and weights whose halves changed places, are small and are put together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .joined import join_linear
from .keymaps import COMPANIONS, Source, apply_operation
from .read import Header


def assemble(tensors: Mapping[str, Tensor], sources: Mapping[str, tuple[Source, ...]]) -> dict[str, Tensor]:
    """Tensors under the file's names, without prefix, as those of `sources`. Parts get names of their own."""
    assembled: dict[str, Tensor] = {}
    for name, parts in sources.items():
        found = [apply_operation(source.operation, tensors[source.name]) for source in parts]
        if parts[0].parts == 1:
            assembled[name] = found[0]
            continue
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" or leaf in COMPANIONS:
            for source, tensor in zip(parts, found, strict=True):
                assembled[f"{part_name(module, source)}.{leaf}"] = tensor
        else:
            assembled[name] = torch.cat(found)
    return assembled


def use_joined(model: nn.Module, sources: Mapping[str, tuple[Source, ...]], header: Header) -> None:
    """Give a model on the meta device the layers for weights of several parts. header: the file's names."""
    for name, parts in sources.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(parts) > 1:
            join_linear(model, module, [header.tensors[source.name].shape[0] for source in parts])


def part_name(module: str, source: Source) -> str:
    """What the layer of one source of a module is called: the module, or a part of the JoinedLinear that it is."""
    return module if source.parts == 1 else f"{module}.parts.{source.part}"

"""Where a LoRA file's alpha may stand besides its tensors: in its header, or in a configuration beside it.

A place that states another rank than a layer's matrices have does not speak of that layer. A configuration beside the
file counts only if it is that file's: by a file name that its writer gives, or because no other weights are in the
folder; and if a rank that it states is in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint.read import Header
from ..errors import UnsupportedFile
from .alpha_entries import RANK_NAMES, AlphaSource, components, parse_table, source_of

PEFT_METADATA = "lora_adapter_metadata"
"""Diffusers' entry in the header: PEFT's configuration as JSON."""
CONFIGS = ("adapter_config.json", "lora_config.json")
MAX_CONFIG_BYTES = 4_000_000
OWN_NAMES = ("adapter_model", "pytorch_lora_weights", "diffusion_pytorch_model")
"""What PEFT and diffusers call the weights that they write a configuration beside."""
WEIGHTS = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
HEADER_COMPONENTS = (
    "transformer",
    "base_model.model",
    "diffusion_model",
    "model.diffusion_model",
    "model",
    "dit",
    "unet",
    "net",
    "network",
    "lora",
)
"""What may stand before an entry of the header that is about the transformer. Other entries are about other things."""


@dataclass(frozen=True)
class AlphaSources:
    """The places of one file that state alpha, the first first. notes: what is said of places that do not count."""

    file: str
    sources: tuple[AlphaSource, ...] = ()
    notes: tuple[str, ...] = ()


def read_alpha_sources(header: Header, ranks: Mapping[str, int]) -> AlphaSources:
    """What a file's header and the configurations beside it say.

    ranks: of each module with two matrices, by its path in the model (without a prefix of the file's).
    Raises UnsupportedFile for a configuration that is the file's and asks for what is not computed here.
    """
    beside, notes = [], []
    for config in CONFIGS:
        path = header.path.parent / config
        if not path.is_file():
            continue
        told = [_tried(source, ranks) for source in _beside(path, header)]
        if told and not _is_own(header.path):
            notes.append(f"{config} beside it is not taken: it lies among other weights, and need not be this file's.")
            continue
        fitting = [source for source in told if source.problem or _agrees(source, ranks)]
        notes += [_disagreement(source, ranks) for source in told if source not in fitting]
        beside += fitting
    ordered = [*_peft_entry(header), *beside, *_plain_entries(header)]
    for source in ordered:
        if source.refusal:
            raise UnsupportedFile(
                f"{header.path.name} cannot be used: by {source.name}, {source.refusal}. Convert it to a plain LoRA "
                "with the tool that made it."
            )
    return AlphaSources(header.path.name, tuple(_tried(source, ranks) for source in ordered), tuple(notes))


def _peft_entry(header: Header) -> Iterator[AlphaSource]:
    text, name = header.metadata.get(PEFT_METADATA), f"{PEFT_METADATA} in the header"
    if text is not None:
        yield from _read(text, name, header.tensors)


def _beside(path: Path, header: Header) -> Iterator[AlphaSource]:
    name = f"{path.name} beside it"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        yield AlphaSource(name, problem=f"it cannot be read ({error})")
        return
    yield from _read(text, name, header.tensors)


def _read(text: str, name: str, tensors: Iterable[str]) -> Iterator[AlphaSource]:
    """The sources in a configuration, one for each table that states alpha."""
    try:
        tables = components(parse_table(text))
    except ValueError as error:
        yield AlphaSource(name, problem=str(error))
        return
    for component, table in tables.items():
        source = source_of(table, name, tensors, keeps_lone_alpha=not component)
        if source is not None:
            yield source


def _plain_entries(header: Header) -> Iterator[AlphaSource]:
    tables: dict[str, dict[str, str]] = {}
    for key, value in header.metadata.items():
        component, _, name = key.rpartition(".")
        if component in ("", *HEADER_COMPONENTS):
            tables.setdefault(component, {})[name] = value
    for component in sorted(tables, key=lambda component: not component):
        table = tables[component]
        source = source_of(table, "the header", header.tensors)
        if source is not None:
            keys = [source.key, *(key for key in RANK_NAMES if key in table)][:2]
            spelled = " and ".join(f"{component}.{key}".removeprefix(".") for key in keys)
            yield replace(source, name=f"header {'entries' if len(keys) > 1 else 'entry'} {spelled}")


def _tried(source: AlphaSource, ranks: Mapping[str, int]) -> AlphaSource:
    """The source itself, or one with a problem if its patterns take too long on these modules."""
    try:
        for module, rank in ranks.items():
            source.scale(module, rank)
    except ValueError as error:
        return replace(source, problem=str(error))
    return source


def _is_own(path: Path) -> bool:
    """Whether a configuration beside these weights is theirs."""
    if path.stem.lower() in OWN_NAMES:
        return True
    with os.scandir(path.parent) as entries:
        return not any(entry.name != path.name and entry.name.lower().endswith(WEIGHTS) for entry in entries)


def _agrees(source: AlphaSource, ranks: Mapping[str, int]) -> bool:
    """Whether any layer has the rank that is stated for it. The others must find another place that speaks of them."""
    return any(source.rank_of(module) == rank for module, rank in ranks.items())


def _disagreement(source: AlphaSource, ranks: Mapping[str, int]) -> str:
    stated = "no rank" if source.rank is None else f"rank {source.rank}"
    found = ", ".join(str(rank) for rank in sorted(set(ranks.values()))[:5]) or "none"
    return f"{source.name} is not taken: it states {stated}, the matrices have {found}, so it is another file's."

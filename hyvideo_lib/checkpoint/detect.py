"""What a file is and whether it can be used, from its header alone: nothing is loaded, no gigabyte is read.

`inspect_file` is for people and scripts and never objects to a readable file, whatever it holds; the loaders take the
same findings (`examine`) and refuse by them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .examine import SHOWN, Findings, examine
from .folder import open_header
from .known_others import TINY_VAE
from .layout import Match
from .lora_told import lora_notes
from .pickles import PickleFacts, read_pickle
from .read import Header
from .schemes import tensor_scheme
from .variants import KIND_NAMES, choose_variant, match_layout, possible_variants
from .wrappers import wrappers_in

__all__ = ["FilePart", "FileReport", "Findings", "TensorGroup", "examine", "inspect_file"]

LLAMA3_WIDTH, LLAMA3_VOCABULARIES = 4096, (128256, 128257, 128258, 128259, 128320)


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of one part of the file (the first word of their names) that are stored alike."""

    name: str
    dtype: str
    tensors: int
    parameters: int
    num_bytes: int
    scheme: str = "none"  # how their weights are to be read: "none", "fp8_cast", "fp8_scale", ...


@dataclass(frozen=True)
class FilePart:
    """One of the models in a file that holds several. prefix: of its names, by which it is told from the others."""

    kind: str
    layout: str
    variant: str
    prefix: str
    tensors: int


@dataclass(frozen=True)
class FileReport:
    """The recogniser's answer. `supported` is the verdict, `reason` why not; the name lists hold the first ten each.

    parts: every model of a file that holds several; the report is on one of them.
    """

    path: str
    file_size: int  # bytes
    kind: str  # "transformer", "vae", "llama", "clip", "lora", ... or "unknown"
    layout: str
    variant: str
    prefix: str
    quantization: str  # "none", "fp8_cast", "fp8_scale", ...
    supported: bool
    reason: str
    notes: tuple[str, ...]
    num_tensors: int
    num_parameters: int
    groups: tuple[TensorGroup, ...]
    config: Mapping[str, Any] | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shapes: tuple[str, ...]
    some_names: tuple[str, ...]
    metadata: Mapping[str, str]
    parts: tuple[FilePart, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        return asdict(self)


def inspect_file(path: str | Path, variant: str | None = None, kinds: Collection[str] = ()) -> FileReport:
    """Kind, layout, variant, sizes, storage and verdict of a file, from its header.

    path: a safetensors or GGUF file, a pickle (which is described, never opened), or a folder, index or shard of a
    checkpoint in several files. variant: what the user says a transformer is, one of `variants.VARIANTS`; it decides
    where tensors cannot tell. kinds: the kind of model that is meant of a file that holds several, or kinds of equal
    right; without it the usual one.
    Raises only for files that cannot be read at all: FileMissing, FileTruncated, FileUnreadable, UnsupportedFile.
    """
    pickle = _pickle_at(Path(path))
    if pickle is not None:
        return _pickle_report(Path(path), pickle)
    header = open_header(path)
    findings = examine(header, kinds=kinds)
    kind, notes = _variant(findings, header, variant)
    return FileReport(
        path=str(path),
        file_size=header.file_size,
        kind=findings.kind,
        layout=findings.layout,
        variant=kind,
        prefix=findings.match.prefix if findings.match else "",
        quantization=findings.quantization,
        supported=not findings.reason,
        reason=findings.reason,
        notes=(*header.notes, *notes),
        num_tensors=len(header.tensors),
        num_parameters=sum(info.numel for info in header.tensors.values()),
        groups=_groups(header, findings.match.prefix if findings.match else ""),
        config=asdict(findings.config) if findings.config else None,
        missing=findings.missing[:SHOWN],
        unexpected=findings.unexpected[:SHOWN],
        wrong_shapes=findings.wrong_shapes[:SHOWN],
        some_names=tuple(header.tensors)[:SHOWN],
        metadata=dict(header.metadata),
        parts=_parts(findings),
    )


def _parts(findings: Findings) -> tuple[FilePart, ...]:
    if len(findings.parts) < 2:
        return ()
    return tuple(
        FilePart(layout.kind, layout.layout, layout.variant, part.match.prefix, len(part.header.tensors))
        for part in findings.parts
        for layout in (part.match.layout,)
    )


def _pickle_at(path: Path) -> PickleFacts | None:
    """The facts of a pickle; None for other files and for what cannot be opened, on which `open_header` has words."""
    try:
        return read_pickle(path) if path.is_file() else None
    except (OSError, ValueError):
        return None


def _pickle_report(path: Path, pickle: PickleFacts) -> FileReport:
    """What a pickle seems to hold. Its kind stays unknown: names alone, in a file not to be trusted, prove nothing."""
    size = path.stat().st_size
    match = match_layout(pickle.header(path, size))
    seems = f" By its names it holds {_described(match)}." if match else ""
    members = f" It holds {pickle.members} tensors." if pickle.members else ""
    return FileReport(
        path=str(path),
        file_size=size,
        kind="unknown",
        layout=pickle.layout,
        variant="",
        prefix=match.prefix if match else "",
        quantization="none",
        supported=False,
        reason=f"It is {pickle.title}. Pickles can run code and are never opened here; use the .safetensors version of "
        "the file, or make one with `hyvideo convert`.",
        notes=(f"{members}{seems}".strip(),) if members or seems else (),
        num_tensors=pickle.members,
        num_parameters=0,
        groups=(),
        config=None,
        missing=(),
        unexpected=(),
        wrong_shapes=(),
        some_names=pickle.names[:SHOWN],
        metadata={},
    )


def _described(match: Match) -> str:
    layout = match.layout
    return f"{KIND_NAMES[layout.kind]} ({', '.join(filter(None, (layout.variant, layout.layout)))})"


def _variant(findings: Findings, header: Header, choice: str | None) -> tuple[str, tuple[str, ...]]:
    """Which model of its kind a file is, and all notes on it."""
    name, notes = findings.match.layout.variant if findings.match else "", list(findings.notes)
    if findings.kind == "transformer" and findings.config and not name:
        possible = possible_variants(findings.config.in_channels, findings.config.out_channels)
        name, told, complaint = choose_variant(possible, header.path.name, choice)
        notes += told
        if complaint:
            notes.append(complaint)
    if findings.kind == "llama":
        name = "llava" if any("multi_modal_projector." in tensor for tensor in header.tensors) else ""
        if findings.config and _is_odd_llama(findings.config):
            notes.append(
                f"Its vocabulary has {findings.config.vocab_size} words, LLaVA-Llama-3's 128320: is it another model?"
            )
    if findings.kind == "lora":
        notes += lora_notes(header)
        if findings.config and findings.config.in_channels:
            notes.append(f"It changes the patch embedding, which takes {findings.config.in_channels} channels then.")
    if findings.kind == "vae" and name == TINY_VAE:
        notes.append(
            "It is a tiny VAE (TAEHV): it decodes previews in little time and memory, less true than HunyuanVideo's "
            "VAE, and encodes nothing. Wan's (taew2_1) looks the same to the last tensor and shows wrong colours."
        )
    if findings.kind == "vae" and findings.config and not findings.config.has_encoder and name != TINY_VAE:
        notes.append("It has only a decoder: it turns latents into frames, and no frames into latents.")
    notes += _what_else(findings, header)
    return name, tuple(notes)


def _what_else(findings: Findings, header: Header) -> list[str]:
    """What the file holds beside the model that the report is on, and what else stands in its names."""
    notes = []
    if len(findings.parts) > 1:
        told = [f"{KIND_NAMES[part.match.layout.kind]} ({part.match.prefix or 'no prefix'})" for part in findings.parts]
        notes.append(
            f"It holds {len(told)} models: {', '.join(told)}. This is the report on "
            f"{KIND_NAMES[findings.kind]} ({findings.match.prefix if findings.match else ''}); wherever the file is "
            "given, what is asked for there is taken from it."
        )
    words = wrappers_in(info.name for info in findings.file_header.tensors.values())
    if words and findings.match and findings.kind != "lora":
        notes.append(f"Its names hold words that training programs put in, which are read past: {', '.join(words)}.")
    models = sum(len(part.header.tensors) + len(part.twins) for part in findings.parts)
    if findings.parts and models < len(header.tensors):
        notes.append(f"Tensors of something else, ignored: {len(header.tensors) - models}.")
    return notes


def _is_odd_llama(config: Any) -> bool:
    return config.hidden_size == LLAMA3_WIDTH and config.vocab_size not in LLAMA3_VOCABULARIES


_NUMBERED = re.compile(r"_\d+_")
"""Where names without dots, as in some LoRA files, count their blocks."""


def _groups(header: Header, prefix: str) -> tuple[TensorGroup, ...]:
    groups: dict[tuple[str, str, str], TensorGroup] = {}
    for name, info in header.tensors.items():
        part = _NUMBERED.split(name.removeprefix(prefix).partition(".")[0], maxsplit=1)[0]
        key = (part, info.dtype, tensor_scheme(name, header))
        group = groups.get(key) or TensorGroup(key[0], key[1], 0, 0, 0, key[2])
        groups[key] = replace(
            group,
            tensors=group.tensors + 1,
            parameters=group.parameters + info.numel,
            num_bytes=group.num_bytes + info.num_bytes,
        )
    return tuple(groups[key] for key in sorted(groups))

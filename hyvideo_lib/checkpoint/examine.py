"""What a header is, and whether it can be used: the findings that the report shows and that the loaders go by.

Sizes are read, and names compared, in Tencent's names; complaints are in the file's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from ..errors import BadInput, InvalidSetting
from .blueprint import BLUEPRINTS, Contents
from .descriptions import unpack_complaint, with_own_layers
from .idle import is_idle
from .keymaps import MARKERS, Source, Translated, our_name, their_names, to_tencent
from .layout import Match
from .llama_cpp import translate_llama_cpp
from .lora_families import match_lora
from .parts import Part, find_parts
from .read import Header
from .schemes import file_scheme, is_companion, packed_refusal, storage_notes, storage_refusal
from .sizes import METADATA_KEY
from .spelling import respellings
from .variants import KIND_NAMES, LAYOUTS

SHOWN = 10  # names listed of each complaint

# Schemes of storage that the loader of each kind knows.
ACCEPTED_SCHEMES = {
    "transformer": ("none", "fp8_cast", "fp8_scale", "comfyui_fp8_scaled", "comfyui_quant", "gguf"),
    "vae": ("none", "fp8_cast"),
    "llama": ("none", "fp8_cast", "comfyui_fp8_scaled", "comfyui_quant", "gguf"),
    "clip": ("none", "fp8_cast", "comfyui_fp8_scaled", "comfyui_quant"),
}


@dataclass(frozen=True)
class Findings:
    """What `examine` makes of a header.

    file_header: the tensors of the model that is meant, without the prefix and what else is put into names; their own
    names stand in their TensorInfo. header: those that are used, in Tencent's names, with the shapes of the whole where
    the file keeps parts. sources: for each name of `header`, the tensors of `file_header` that it is made of.
    """

    header: Header
    file_header: Header
    match: Match | None
    config: Any  # the kind's config dataclass, or None where it could not be told
    quantization: str
    reason: str  # why the file cannot be used; empty if it can
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shapes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()  # every model of the file, this one among them

    def name_in_file(self, bare: str) -> str:
        """What the file calls a tensor of `file_header`; the name as it is where there is none."""
        info = self.file_header.tensors.get(bare)
        return info.name if info else bare

    @property
    def kind(self) -> str:
        return self.match.layout.kind if self.match else "unknown"

    @property
    def layout(self) -> str:
        return self.match.layout.layout if self.match else ""


def examine(header: Header, config: Any = None, kinds: Collection[str] = ()) -> Findings:
    """Recognise a header and compare it with what such a file must hold.

    config: sizes to hold it against instead of those read off the header. kinds: which model is meant of a file that
    holds several; where there is none of them, or nothing is said, the findings are on the usual one. Raises nothing:
    complaints are in the result.
    """
    lora = match_lora(header)
    if lora is not None:
        match, facts = lora
        return Findings(header, header, match, facts, file_scheme(header), match.layout.refusal)
    findings = _examine_model(header, config, kinds)
    is_known = not findings.reason or bool(findings.match and findings.match.layout.refusal)
    others = () if is_known else (_examine_model(other, config, kinds) for other in respellings(header))
    return next((found for found in others if not found.reason), findings)


def _examine_model(header: Header, config: Any, kinds: Collection[str]) -> Findings:
    """`examine` for a file that is no LoRA, its names as they are."""
    parts = find_parts(header, LAYOUTS)
    if not parts:
        known = ", ".join(KIND_NAMES[kind] for kind in (*BLUEPRINTS, "lora"))
        some = ", ".join(list(header.tensors)[:SHOWN]) or "none"
        scheme = file_scheme(header)
        stored = storage_refusal(scheme, (scheme,), ())
        reason = f"{stored} It holds nothing known here (looked for {known}). Its tensors: {some}.".lstrip()
        return Findings(header, header, None, None, scheme, reason)
    part = choose_part(parts, kinds)
    layout = part.match.layout
    bare = with_own_layers(part.header, part.match.prefix)
    translated = translate(bare, layout.kind, layout.layout)
    reason = layout.refusal or _doubt(part, parts)
    findings = Findings(
        translated.header,
        bare,
        part.match,
        None,
        file_scheme(replace(part.with_beside, metadata=bare.metadata)),
        reason,
        sources=translated.sources,
        parts=parts,
    )
    return findings if findings.reason else _compare(findings, translated, config)


def choose_part(parts: Sequence[Part], kinds: Collection[str]) -> Part:
    """The model that is meant: of the wanted kinds one that can be used, under a usual prefix; else the first."""
    wanted = [part for part in parts if part.match.layout.kind in kinds]
    if not wanted:
        return parts[0]
    return min(wanted, key=lambda part: (bool(part.match.layout.refusal), not part.is_usual))  # the first of equals


def _doubt(part: Part, parts: Iterable[Part]) -> str:
    """Why nobody can tell which tensors are meant; empty where it is plain."""
    if part.twins:
        shown = "; ".join(" and ".join(pair) for pair in part.twins[:3])
        return (
            f"It has two tensors for one layer, once what training programs put into names is taken off "
            f"({len(part.twins)} times): {shown}. Use a file that holds the model once."
        )
    kind = part.match.layout.kind
    alike = [
        other.match.prefix for other in parts if other.match.layout.kind == kind and not other.match.layout.refusal
    ]
    if not part.is_usual and len(alike) > 1:
        return (
            f"It holds {KIND_NAMES[kind]} {len(alike)} times, under {' and '.join(alike[:SHOWN])}, and nothing tells "
            "which is meant. Use a file that holds one of them."
        )
    return ""


def translate(header: Header, kind: str, layout: str) -> Translated:
    """A prefix-free header in the names that this kind's model has."""
    if layout == "llama_cpp":
        return translate_llama_cpp(header)
    if layout == "huggingface_bare":
        names = {name: name if name in MARKERS else f"text_model.{name}" for name in header.tensors}
        tensors = {names[name]: info for name, info in header.tensors.items()}
        sources = {ours: (Source(name),) for name, ours in names.items()}
        return Translated(replace(header, tensors=MappingProxyType(tensors)), MappingProxyType(sources), ())
    return to_tencent(header, kind, layout)


def _compare(findings: Findings, translated: Translated, config: Any) -> Findings:
    """The findings with sizes, and with what is missing, too much or of a wrong shape."""
    kind, header = findings.kind, translated.header
    blueprint = BLUEPRINTS[kind]
    refused = storage_refusal(findings.quantization, ACCEPTED_SCHEMES[kind], ())
    try:
        config = config or blueprint.config_from_header(header)
        contents = _contents(kind, config)
    except InvalidSetting as error:
        hint = f"What tensors cannot tell may stand in the metadata under {METADATA_KEY!r}, or be given as config."
        return replace(findings, reason=refused or f"Its sizes do not fit together: {error} {hint}")
    except BadInput as error:
        return replace(findings, reason=refused or str(error))

    ignored = findings.match.layout.ignored if findings.match else ()
    found = {
        name
        for name in header.tensors
        if not name.startswith(ignored) and name not in MARKERS and not is_companion(name, header)
    }
    own = _OwnNames(findings, translated)
    absent = [name for name in contents.needed if name not in found]
    missing = tuple(name for ours in absent for name in own.missing(ours))
    over = found - contents.needed.keys() - contents.unused.keys()
    idle = {name for name in over if is_idle(name, header.tensors[name], contents.needed)}
    surplus = [name for ours in over - idle for name in own.of(ours)]
    left = [name for name in translated.leftover if not name.startswith(ignored) and not own.is_part_of(name, contents)]
    idle_left = {name for name in left if is_idle(name, findings.file_header.tensors[name], contents.needed)}
    unexpected = tuple(sorted({*surplus, *map(own.in_file, set(left) - idle_left)}))
    passed_over = tuple(sorted({*map(own.in_file, idle_left), *(name for ours in idle for name in own.of(ours))}))
    wrong_shapes = tuple(
        f"{' + '.join(own.of(name))} is {list(header.tensors[name].shape)}, expected {list(shape)}"
        for name, shape in contents.needed.items()
        if name in found and header.tensors[name].shape != shape
    )
    dtypes = {header.tensors[name].dtype for name in contents.needed if name in found}
    complaints = (
        _complaint("Missing tensors", missing),
        _complaint("Unexpected tensors", unexpected),
        _complaint("Tensors of a wrong shape", wrong_shapes),
    )
    kept = {name: source for name, source in translated.sources.items() if name not in idle}
    used = replace(header, tensors=MappingProxyType({name: header.tensors[name] for name in kept}))
    return replace(
        findings,
        header=used,
        sources=MappingProxyType(kept),
        config=config,
        # Quantised weights have companions and shapes of their own: the lists would only repeat it at length.
        reason=refused
        or packed_refusal(header, contents.needed)
        or storage_refusal(findings.quantization, ACCEPTED_SCHEMES[kind], dtypes)
        or " ".join(filter(None, complaints))
        or unpack_complaint(findings),
        missing=missing,
        unexpected=unexpected,
        wrong_shapes=wrong_shapes,
        notes=(*storage_notes(findings.quantization, header), *_passed_over(passed_over)),
    )


@lru_cache(maxsize=8)
def _contents(kind: str, config: Any) -> Contents:
    """What a file of these sizes must hold. Kept, because a file is looked at more than once before it is loaded."""
    return BLUEPRINTS[kind].contents(config)


@dataclass(frozen=True)
class _OwnNames:
    """From Tencent's names back to those that the file has, or should have, without the prefix of all."""

    findings: Findings
    translated: Translated

    def in_file(self, bare: str) -> str:
        """A tensor's name in the file."""
        prefix = self.findings.match.prefix if self.findings.match else ""
        return self.findings.name_in_file(bare).removeprefix(prefix)

    def of(self, ours: str) -> tuple[str, ...]:
        """The file's tensors behind one of ours."""
        return tuple(self.in_file(source.name) for source in self.translated.sources.get(ours, (Source(ours),)))

    def missing(self, ours: str) -> tuple[str, ...]:
        """What the file lacks for one of ours: all of its parts, or some of them."""
        if self.findings.layout == "huggingface_bare":
            return (ours.removeprefix("text_model."),)
        wanted = [source.name for source in their_names(self.findings.kind, self.findings.layout, ours)]
        return tuple(name for name in wanted if name not in self.translated.leftover) or (ours,)

    def is_part_of(self, name: str, contents: Contents) -> bool:
        """Whether a tensor that was left over is a part of one that is needed, and only lacks the others."""
        hit = our_name(self.findings.kind, self.findings.layout, name)
        return hit is not None and hit[0] in contents.needed


def _passed_over(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    more = ", ..." if len(names) > SHOWN else ""
    return (f"Tensors that no layer needs, ignored: {len(names)} ({', '.join(names[:SHOWN])}{more}).",)


def _complaint(fault: str, names: Iterable[str]) -> str:
    listed = tuple(names)
    if not listed:
        return ""
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"{fault} ({len(listed)}): {', '.join(listed[:SHOWN])}{more}."

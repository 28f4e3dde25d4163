"""What a header is, and whether it can be used: the findings that the report shows and that the loaders go by.

Sizes are read, and names compared, in Tencent's names; complaints are in the file's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from ..errors import BadInput, InvalidSetting
from .blueprint import BLUEPRINTS, Contents
from .descriptions import unpack_complaint, with_own_layers
from .keymaps import MARKERS, Source, Translated, our_name, their_names, to_tencent
from .layout import Match
from .llama_cpp import translate_llama_cpp
from .lora_families import match_lora
from .read import Header
from .schemes import file_scheme, is_companion, packed_refusal, storage_notes, storage_refusal
from .sizes import METADATA_KEY
from .variants import KIND_NAMES, match_layout

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

    file_header: the file's own names, without the prefix and without what stands outside it. header: the same in
    Tencent's names, with the shapes of the whole where the file keeps parts. sources: for each name of `header`, the
    tensors of `file_header` that it is made of. Where nothing needs translating, the two headers are one.
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

    @property
    def kind(self) -> str:
        return self.match.layout.kind if self.match else "unknown"

    @property
    def layout(self) -> str:
        return self.match.layout.layout if self.match else ""


def examine(header: Header, config: Any = None) -> Findings:
    """Recognise a header and compare it with what such a file must hold.

    config: sizes to hold it against instead of those read off the header. Raises nothing: complaints are in the result.
    """
    scheme = file_scheme(header)
    lora = match_lora(header)
    if lora is not None:
        match, facts = lora
        return Findings(header, header, match, facts, scheme, match.layout.refusal)
    found = match_layout(header)
    if found is None:
        known = ", ".join(KIND_NAMES[kind] for kind in (*BLUEPRINTS, "lora"))
        some = ", ".join(list(header.tensors)[:SHOWN]) or "none"
        stored = storage_refusal(scheme, (scheme,), ())
        reason = f"{stored} It holds nothing known here (looked for {known}). Its tensors: {some}.".lstrip()
        return Findings(header, header, None, None, scheme, reason)
    bare = with_own_layers(header, found.prefix)
    scheme = file_scheme(bare)
    translated = translate(bare, found.layout.kind, found.layout.layout)
    findings = Findings(translated.header, bare, found, None, scheme, found.layout.refusal, sources=translated.sources)
    return findings if findings.reason else _compare(findings, translated, config)


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
    kind, layout, header = findings.kind, findings.layout, translated.header
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
    own = _OwnNames(kind, layout, translated)
    absent = [name for name in contents.needed if name not in found]
    missing = tuple(name for ours in absent for name in own.missing(ours))
    surplus = [name for ours in found - contents.needed.keys() - contents.unused.keys() for name in own.of(ours)]
    leftover = [
        name for name in translated.leftover if not name.startswith(ignored) and not own.is_part_of(name, contents)
    ]
    unexpected = tuple(sorted({*surplus, *leftover}))
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
    return replace(
        findings,
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
        notes=storage_notes(findings.quantization, header),
    )


@lru_cache(maxsize=8)
def _contents(kind: str, config: Any) -> Contents:
    """What a file of these sizes must hold. Kept, because a file is looked at more than once before it is loaded."""
    return BLUEPRINTS[kind].contents(config)


@dataclass(frozen=True)
class _OwnNames:
    """From Tencent's names back to those that the file has, or should have."""

    kind: str
    layout: str
    translated: Translated

    def of(self, ours: str) -> tuple[str, ...]:
        """The file's tensors behind one of ours."""
        return tuple(source.name for source in self.translated.sources.get(ours, (Source(ours),)))

    def missing(self, ours: str) -> tuple[str, ...]:
        """What the file lacks for one of ours: all of its parts, or some of them."""
        if self.layout == "huggingface_bare":
            return (ours.removeprefix("text_model."),)
        wanted = [source.name for source in their_names(self.kind, self.layout, ours)]
        return tuple(name for name in wanted if name not in self.translated.leftover) or (ours,)

    def is_part_of(self, name: str, contents: Contents) -> bool:
        """Whether a tensor that was left over is a part of one that is needed, and only lacks the others."""
        hit = our_name(self.kind, self.layout, name)
        return hit is not None and hit[0] in contents.needed


def _complaint(fault: str, names: Iterable[str]) -> str:
    listed = tuple(names)
    if not listed:
        return ""
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"{fault} ({len(listed)}): {', '.join(listed[:SHOWN])}{more}."

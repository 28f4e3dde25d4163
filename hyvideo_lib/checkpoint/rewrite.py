"""The plan of a conversion: which tensors the new file has, and from which of the old one each is made.

Nothing is read while planning; every new tensor is made when it is written, from views of the old file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSetting, UnsupportedFile, WrongKind
from ..quant import FP8_DTYPES, is_kept_in_plain_fp8
from ..quant.comfy_quant import METADATA_KEY as SCHEME_METADATA
from ..quant.schemes import unpack
from ..quant.stored import StoredWeight
from .assemble import part_name
from .descriptions import UNSCALED, own_contents
from .examine import Findings, examine
from .keymap_tables import TABLES
from .keymaps import COMPANIONS, MARKERS, Source, part_rows, their_names
from .pieces import Piece, apply, cast, join, piece_of, split, undo
from .read import Header
from .scale_map import SCALE, check_scale_map, is_scale
from .schemes import file_scheme
from .variants import KIND_NAMES

LAYOUTS = ("tencent", "comfyui", "diffusers")
COMPONENTS = ("auto", "transformer", "vae", "llm", "clip", "any")
KIND_OF_COMPONENT = {"transformer": "transformer", "vae": "vae", "llm": "llama", "clip": "clip"}
STORAGES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Request:
    """What the new file should be. None keeps what the file has.

    component: which model is taken of a file that holds several; "auto" the usual one, "any" keeps everything as it is.

    Raises InvalidSetting.
    """

    layout: str | None = None
    storage: str | None = None
    component: str = "auto"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("layout", self.layout, LAYOUTS),
            ("storage", self.storage, STORAGES),
            ("component", self.component, COMPONENTS),
        ):
            if value is not None and value not in known:
                raise InvalidSetting(f"{name} is {value!r}, but must be one of {', '.join(known)}.")
        if self.component == "any" and self.layout:
            raise InvalidSetting("component any keeps names as they are; leave the layout out.")

    @property
    def dtype(self) -> torch.dtype | None:
        dtype: torch.dtype | None = getattr(torch, self.storage) if self.storage else None
        return dtype


@dataclass(frozen=True)
class Plan:
    """The tensors of the new file, its metadata, and in `manifest` what changes, ready for JSON."""

    pieces: tuple[Piece, ...]
    metadata: Mapping[str, str]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """A file's header, and its tensors under the same names."""

    header: Header
    tensors: Mapping[str, Tensor]


def plan_conversion(file: Opened, request: Request, scale_map: Opened | None = None) -> Plan:
    """Plan a file's conversion. scale_map: what lies beside it, for fp8 weights without scales of their own.

    Raises UnsupportedFile, WrongKind, InvalidSetting.
    """
    header = file.header
    findings = _recognise(header, request)
    is_rewritten = findings is not None and (findings.kind, "comfyui") in TABLES
    if findings is not None and is_rewritten:
        scales: Mapping[str, Tensor] = {}
        if scale_map is not None and findings.quantization == "fp8_cast":
            check_scale_map(scale_map.header, findings.header.tensors)
            scales = scale_map.tensors
        pieces = tuple(_Rewriter(findings, file.tensors, request, scales).pieces())
    elif request.layout:
        what = KIND_NAMES[findings.kind] if findings else "this file"
        raise InvalidSetting(f"There is only one layout of {what} here; leave the layout out.")
    elif findings and request.component != "auto":
        taken = {bare: file.tensors[info.name] for bare, info in findings.file_header.tensors.items()}
        pieces = tuple(_as_they_are(findings.file_header, taken, request.dtype))
    else:
        pieces = tuple(_as_they_are(header, file.tensors, request.dtype))
    is_kept = header.format == "safetensors"
    told = findings.file_header if findings and (is_rewritten or request.component != "auto") else header
    unkept = (SCHEME_METADATA,) if is_rewritten else ()  # elsewhere all that it describes stays as it was
    metadata = {key: value for key, value in told.metadata.items() if is_kept and key not in unkept}
    return Plan(pieces, metadata, _manifest(header, findings, request, pieces))


def _manifest(header: Header, findings: Findings | None, request: Request, pieces: tuple[Piece, ...]) -> dict[str, Any]:
    prefix = findings.match.prefix if findings and findings.match else ""

    def own(source: str) -> str:
        return source if findings is None or source in header.tensors else findings.name_in_file(source)

    used = {own(source) for piece in pieces for source in piece.sources}
    return {
        "from": {
            "file": header.path.name,
            "kind": findings.kind if findings else "any",
            "layout": findings.layout if findings else "",
            "prefix": prefix,
            "quantization": findings.quantization if findings else "",
        },
        "to": asdict(request),
        "num_tensors": len(pieces),
        "num_changed": sum(bool(piece.changes) for piece in pieces),
        "num_bytes": sum(piece.num_bytes for piece in pieces),
        "dropped": sorted(header.tensors.keys() - used),
        "notes": [*header.notes, *(findings.notes if findings else ())],
        "tensors": [
            {
                "name": piece.name,
                "dtype": str(piece.dtype).removeprefix("torch."),
                "from": [own(source) for source in piece.sources],
                "from_dtype": piece.stored_as,
                "changes": list(piece.changes),
            }
            for piece in pieces
        ],
    }


def _recognise(header: Header, request: Request) -> Findings | None:
    """The findings on a file whose names are known; None for one whose names are to be kept, as a scale map's."""
    is_map = header.tensors and all(is_scale(info) and "_blocks." in name for name, info in header.tensors.items())
    if is_map or request.component == "any":
        return None
    kind = KIND_OF_COMPONENT.get(request.component)
    findings = examine(header, kinds=(kind,) if kind else ())
    if findings.match is None or findings.reason:
        raise UnsupportedFile(
            f"{header.path.name} cannot be converted as a model. {findings.reason} With --component any its tensors "
            "are written as they are."
        )
    if kind and findings.kind != kind:
        raise WrongKind(
            f"{header.path.name} is {KIND_NAMES[findings.kind]}, but {KIND_NAMES[kind]} was asked for. "
            "Leave --component out, or give another file."
        )
    return findings


def _as_they_are(header: Header, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[Piece]:
    """All tensors under their own names, matrices in the storage that is asked for."""
    if header.format == "gguf" or (dtype and file_scheme(header) not in UNSCALED):
        raise UnsupportedFile(
            f"{header.path.name} holds quantised weights, which this conversion restores in transformers only."
        )
    for name, tensor in tensors.items():
        piece = piece_of(name, tensor)
        yield cast(piece, dtype) if dtype and tensor.is_floating_point() and tensor.ndim > 1 else piece


class _Rewriter:
    """From the findings on a transformer or a VAE to the tensors of the new file."""

    def __init__(
        self, findings: Findings, tensors: Mapping[str, Tensor], request: Request, scales: Mapping[str, Tensor]
    ) -> None:
        self.findings, self.scales, self.dtype = findings, scales, request.dtype
        self.header = findings.file_header
        self.file = {bare: tensors[info.name] for bare, info in self.header.tensors.items()}
        self.layout = request.layout or findings.layout
        if findings.kind == "vae" and self.layout == "diffusers":
            self.layout = "tencent"  # its names are the same
        self._refuse_what_cannot_be_kept()
        self.stored = self._unpack() if self.dtype else {}

    def pieces(self) -> Iterator[Piece]:
        ignored = self.findings.match.layout.ignored if self.findings.match else ()
        for name, sources in self.findings.sources.items():
            is_storage = name in MARKERS or _leaf(name) in COMPANIONS
            if name.startswith(ignored) or (is_storage and self.dtype is not None):
                continue
            parts = [self._piece(name, source) for source in sources]
            if name in MARKERS:
                yield from parts
            else:
                yield from self._arranged(name, parts)
        if self.dtype is None:
            for module, scale in self.scales.items():
                piece = replace(piece_of(module + SCALE, scale.reshape(1)), sources=(), changes=("from the scale map",))
                yield from self._arranged(piece.name, [piece])

    def _refuse_what_cannot_be_kept(self) -> None:
        scheme, name = self.findings.quantization, self.header.path.name
        if self.dtype in FP8_DTYPES and self.findings.kind != "transformer":
            raise InvalidSetting("Only transformers are stored in fp8; choose a storage of 16 or 32 bits.")
        if self.dtype is not None:
            return
        names = self.findings.sources
        joins = any(
            len(names[ours]) > len(their_names(self.findings.kind, self.layout, ours))
            for ours in names.keys() - MARKERS
        )
        unkept = {
            "in GGUF's blocks": scheme == "gguf",
            "in a way that only its metadata tell": SCHEME_METADATA in self.header.metadata,
            "with scales of their own for q, k and v": joins and scheme not in ("none", "fp8_cast"),
        }
        for reason, applies in unkept.items():
            if applies:
                raise UnsupportedFile(
                    f"The weights of {name} are stored {reason}, which cannot be kept in the new file. Choose what to "
                    f"store them in: --storage {', '.join(STORAGES)}."
                )

    def _unpack(self) -> Mapping[str, StoredWeight]:
        """The weights that their numbers alone do not tell, by the names of their layers (and parts)."""
        contents = own_contents(self.findings, self.file)
        scales = {module + SCALE: scale for module, scale in self.scales.items()}
        scheme = "fp8_scale" if self.scales else self.findings.quantization
        return unpack(scheme, replace(contents, tensors={**contents.tensors, **scales})).stored

    def _piece(self, name: str, source: Source) -> Piece:
        """One of the file's tensors as ours, in the storage that is asked for."""
        piece = piece_of(source.name, self.file[source.name])
        if self.dtype is None or name in MARKERS:
            return apply(piece, source.operation)
        is_fp8, module = self.dtype in FP8_DTYPES, name.removesuffix(".weight")
        stored = self.stored.get(part_name(module, source) if module != name else "")
        if stored is None:
            is_kept = is_kept_in_plain_fp8(name) if is_fp8 else len(piece.shape) < 2
            return apply(piece if is_kept else cast(piece, self.dtype), source.operation)
        is_kept = is_fp8 and is_kept_in_plain_fp8(name)
        dtype = torch.bfloat16 if is_kept else torch.float32 if is_fp8 else self.dtype
        dense = replace(
            piece,
            stored_as=self.header.tensors[source.name].dtype,
            dtype=dtype,
            shape=stored.shape,
            make=lambda: stored.dense(dtype),
            changes=("dequantised",),
        )
        return dense if is_kept else cast(dense, self.dtype)

    def _arranged(self, name: str, parts: list[Piece]) -> Iterator[Piece]:
        """The parts under the target layout's names, in as many tensors as it has."""
        targets = their_names(self.findings.kind, self.layout, name)
        if len(targets) < len(parts):
            if len({piece.dtype for piece in parts}) > 1:
                raise UnsupportedFile(f"The parts of {name} differ in their dtype. Choose one --storage for all.")
            parts = [join(parts)]
        elif len(targets) > len(parts):
            parts = self._split(name, parts[0], len(targets))
        for target, piece in zip(targets, parts, strict=True):
            yield undo(piece, target.operation).named(target.name)

    def _split(self, name: str, piece: Piece, count: int) -> list[Piece]:
        """The parts of a whole; what is said of all its rows goes with each of them."""
        if _leaf(name) in COMPANIONS and (_leaf(name) == "comfy_quant" or torch.Size(piece.shape).numel() == 1):
            return [piece] * count
        return split(piece, part_rows(piece.shape[0], count, self.findings.config.hidden_size))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]

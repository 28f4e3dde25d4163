"""What a file is and whether it can be used, from its header alone: nothing is loaded, no gigabyte is read.

`inspect_file` is for people and scripts and never objects to a readable file, whatever it holds; the loaders take the
same findings and refuse by them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, InvalidSetting
from ..transformer import TransformerConfig
from .blueprint import BLUEPRINTS
from .read import Header, TensorInfo, read_header
from .sizes import METADATA_KEY
from .variants import KIND_NAMES, QUANT_MARKERS, SCALE_SUFFIX, Match, match_layout

SHOWN = 10  # names listed of each complaint
STORABLE = frozenset(("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float64"))
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of one part of the file (the first word of their names) that are stored alike."""

    name: str
    dtype: str
    tensors: int
    parameters: int
    num_bytes: int


@dataclass(frozen=True)
class FileReport:
    """The recogniser's answer. `supported` is the verdict, `reason` why not; the name lists hold the first ten each."""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Findings:
    """What `examine` makes of a header. `header` has lost the prefix and everything outside it."""

    header: Header
    match: Match | None
    config: Any  # the kind's config dataclass, or None where it could not be told
    quantization: str
    reason: str  # why the file cannot be used; empty if it can
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shapes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.match.layout.kind if self.match else "unknown"


def inspect_file(path: str | Path) -> FileReport:
    """Kind, layout, variant, sizes, storage and verdict of a safetensors file, from its header.

    Raises only for files that cannot be read at all: FileMissing, FileTruncated, FileUnreadable, UnsupportedFile.
    """
    header = read_header(path)
    findings = examine(header)
    variant, notes = _variant(findings.config) if findings.kind == "transformer" and findings.config else ("", ())
    outside = len(header.tensors) - len(findings.header.tensors)
    if outside:
        notes = (*notes, f"Tensors of something else, ignored: {outside}.")
    return FileReport(
        path=str(path),
        file_size=header.file_size,
        kind=findings.kind,
        layout=findings.match.layout.layout if findings.match else "",
        variant=variant,
        prefix=findings.match.prefix if findings.match else "",
        quantization=findings.quantization,
        supported=not findings.reason,
        reason=findings.reason,
        notes=notes,
        num_tensors=len(header.tensors),
        num_parameters=sum(info.numel for info in header.tensors.values()),
        groups=_groups(header.tensors, findings.match.prefix if findings.match else ""),
        config=asdict(findings.config) if findings.config else None,
        missing=findings.missing[:SHOWN],
        unexpected=findings.unexpected[:SHOWN],
        wrong_shapes=findings.wrong_shapes[:SHOWN],
        some_names=tuple(header.tensors)[:SHOWN],
        metadata=dict(header.metadata),
    )


def examine(header: Header, config: Any = None) -> Findings:
    """Recognise a header and compare it with what such a file must hold.

    config: sizes to hold it against instead of those read off the header. Raises nothing: complaints are in the result.
    """
    match = match_layout(header.tensors)
    quantization = _quantization(header)
    if match is None:
        known = ", ".join(KIND_NAMES[kind] for kind in BLUEPRINTS)
        some = ", ".join(list(header.tensors)[:SHOWN]) or "none"
        reason = f"It holds nothing known here (looked for {known}). Its tensors: {some}."
        return Findings(header, None, None, quantization, reason)
    bare = header.without_prefix(match.prefix)
    if match.layout.refusal:
        return Findings(bare, match, None, quantization, match.layout.refusal)
    blueprint = BLUEPRINTS[match.layout.kind]
    try:
        config = config or blueprint.config_from_header(bare)
        contents = blueprint.contents(config)
    except InvalidSetting as error:
        hint = f"What tensors cannot tell may stand in the metadata under {METADATA_KEY!r}, or be given as config."
        return Findings(bare, match, None, quantization, f"Its sizes do not fit together: {error} {hint}")
    except BadInput as error:
        return Findings(bare, match, None, quantization, str(error))

    found = {name for name in bare.tensors if not name.startswith(match.layout.ignored) and not _is_scale(name, bare)}
    missing = tuple(name for name in contents.needed if name not in found)
    unexpected = tuple(sorted(found - contents.needed.keys() - contents.unused.keys()))
    wrong_shapes = tuple(
        f"{name} is {list(bare.tensors[name].shape)}, expected {list(shape)}"
        for name, shape in contents.needed.items()
        if name in found and bare.tensors[name].shape != shape
    )
    dtypes = {bare.tensors[name].dtype for name in contents.needed if name in found}
    reasons = (
        _complaint("Missing tensors", missing),
        _shard_hint(header) if missing else "",
        _complaint("Unexpected tensors", unexpected),
        _complaint("Tensors of a wrong shape", wrong_shapes),
    )
    reason = (
        # Quantised weights have companions and shapes of their own: the lists would only repeat it at length.
        _storage_refusal(quantization, blueprint.quantizations, dtypes) or " ".join(filter(None, reasons))
    )
    return Findings(bare, match, config, quantization, reason, missing, unexpected, wrong_shapes)


def _variant(config: TransformerConfig) -> tuple[str, tuple[str, ...]]:
    """Which model of the family, told by how many channels go in for those that come out."""
    latent, extra = config.out_channels, config.in_channels - config.out_channels
    if extra == 0:
        return "t2v", (
            "Text to video. An image-to-video (token replace) transformer has the same tensors; they cannot tell.",
        )
    if extra == latent + 1:
        return "i2v_latent_concat", ("Image to video: takes noisy latents, image latents and a mask.",)
    if extra == latent:
        return "i2v_concat_no_mask", ("Image to video, SkyReels' kind: takes noisy latents and image latents.",)
    return "other", (f"Takes {config.in_channels} channels and gives {latent}: no known variant.",)


def _groups(tensors: Mapping[str, TensorInfo], prefix: str) -> tuple[TensorGroup, ...]:
    sums: dict[tuple[str, str], list[int]] = {}
    for name, info in tensors.items():
        row = sums.setdefault((name.removeprefix(prefix).partition(".")[0], info.dtype), [0, 0, 0])
        for column, amount in enumerate((1, info.numel, info.num_bytes)):
            row[column] += amount
    return tuple(TensorGroup(name, dtype, *row) for (name, dtype), row in sorted(sums.items()))


def _quantization(header: Header) -> str:
    """How weights are stored: by companion tensors if there are any, else by the dtypes."""
    for name in header.tensors:
        for suffix, scheme in QUANT_MARKERS.items():
            if name.endswith(suffix):
                return scheme
    return "fp8_cast" if any(info.dtype.startswith("float8") for info in header.tensors.values()) else "none"


def _storage_refusal(quantization: str, accepted: Collection[str], dtypes: Collection[str]) -> str:
    if quantization not in accepted:
        return f"Weights quantised as {quantization} are not supported yet. Use a bf16, fp16 or plain fp8 file."
    strange = sorted(dtype for dtype in dtypes if dtype not in STORABLE)
    if strange:
        return f"Its weights are stored as {', '.join(strange)}; floating-point weights are needed."
    return ""


def _is_scale(name: str, header: Header) -> bool:
    """Whether a tensor is the one-number scale of a Linear's weight in this file."""
    weight = header.shape(name.removesuffix(SCALE_SUFFIX) + ".weight") or ()
    return name.endswith(SCALE_SUFFIX) and len(weight) == 2 and header.tensors[name].numel == 1


def _shard_hint(header: Header) -> str:
    shard = _SHARD.search(header.path.name)
    return f"This is part {int(shard[1])} of {int(shard[2])}; one whole file is needed." if shard else ""


def _complaint(fault: str, names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{fault} ({len(names)}): {', '.join(names[:SHOWN])}{more}."

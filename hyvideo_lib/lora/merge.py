"""A transformer's file with a LoRA added into its weights: same names, same layout, same storage, other numbers.

Each weight is dequantised, added to in float32 and rounded once to what it was stored as. A weight with one scale gets
a new scale as well: under the old one, numbers that grew would be cut off. Tensors are made one by one as they are
written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import check_output, whole_file
from ..checkpoint.examine import Findings, examine
from ..checkpoint.folder import map_header, open_header
from ..checkpoint.keymaps import Source, apply_operation, part_rows, undo_operation
from ..checkpoint.pieces import Piece, piece_of
from ..checkpoint.scale_map import map_beside, read_scale_map
from ..checkpoint.variants import KIND_NAMES
from ..checkpoint.write import write_safetensors
from ..errors import InvalidSetting, UnsupportedFile, WrongKind
from ..host import HeadlessHost, Host
from ..quant import FP8_DTYPES, cast_fp8, quantize_fp8
from .attaching import LoraUse, collect_updates
from .blocks import ALL_BLOCKS, BlockChoice
from .coverage import Coverage
from .names import layer_sizes
from .read import read_lora
from .update import Weighted, add_bias_updates, add_updates, crop_updates

SCALES = ("fp8_scale", "scale_weight", "weight_scale")
MERGED_KEY = "hyvideo.merged"
"""In the new file's metadata: which LoRAs are in it, as JSON."""
_UNMERGEABLE = (
    "is stored in blocks, in integers or with a scale for each row, and a LoRA cannot be merged into that. Convert the "
    "file to bf16 first (hyvideo convert --storage bfloat16), or use the LoRA unmerged, which works with every storage."
)


@dataclass(frozen=True)
class Merged:
    """What a merge did. tensors, changed: how many the new file has, and of how many the numbers are new.

    loras: all that are in it, those of earlier merges first.
    """

    path: Path
    tensors: int
    changed: int
    loras: tuple[Mapping[str, Any], ...]
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON object."""
        return {
            "file": str(self.path),
            "tensors": self.tensors,
            "changed": self.changed,
            "loras": list(self.loras),
            "coverage": self.coverage.to_dict(),
        }


def merge_lora(
    source: str | Path,
    lora: str | Path,
    target: str | Path,
    strength: float = 1.0,
    blocks: BlockChoice = ALL_BLOCKS,
    overwrite: bool = False,
    host: Host | None = None,
) -> Merged:
    """Write `target` from the transformer `source` with a LoRA added.

    Raises what reading the two files raises, WrongKind, UnsupportedFile (weights in GGUF's blocks, in int8, with a
    scale for each row or with their scales in another file), InvalidSetting, OutputExists, OutputNotWritable, DiskFull,
    Interrupted.
    """
    target, host = Path(target), host or HeadlessHost()
    if target.suffix != ".safetensors":
        raise InvalidSetting(f"The new file is called {target.name!r}, but its name must end in .safetensors.")
    if strength == 0:
        raise InvalidSetting("The LoRA's strength is 0, with which it adds nothing: the new file would be a copy.")
    header = open_header(Path(source))
    findings = examine(header, kinds=("transformer",))
    _check_base(findings)
    use = LoraUse(read_lora(lora, findings.config), strength, blocks)
    merger = Merger(findings, map_header(header), collect_updates([use]))
    pieces = merger.pieces()
    check_output(target, overwrite)
    host.stage("merging", len(pieces))
    merged = [*_merged_before(header.metadata), {"file": Path(lora).name, "strength": strength}]
    with whole_file(target, overwrite) as temporary:
        write_safetensors(temporary, pieces, {**header.metadata, MERGED_KEY: json.dumps(merged)}, host)
    changed = sum(bool(piece.changes) for piece in pieces)
    return Merged(target, len(pieces), changed, tuple(merged), use.lora.coverage)


def _check_base(findings: Findings) -> None:
    """Raises WrongKind or UnsupportedFile for a file that no LoRA can be merged into."""
    header = findings.header
    if findings.kind != "transformer" or findings.reason:
        what = KIND_NAMES.get(findings.kind, findings.kind)
        error = WrongKind if findings.kind not in ("transformer", "unknown") else UnsupportedFile
        raise error(f"A LoRA cannot be merged into {header.path.name}, which is {what}. {findings.reason}".strip())
    if header.format == "gguf":
        raise UnsupportedFile(f"{header.path.name} {_UNMERGEABLE}")
    if findings.quantization == "fp8_cast" and read_scale_map(findings.file_header):
        raise UnsupportedFile(
            f"{header.path.name} has the scales of its weights in {map_beside(header.path).name}. Put both into one "
            "file first (hyvideo convert), and merge the LoRA into that."
        )


def _merged_before(metadata: Mapping[str, str]) -> list[Any]:
    try:
        before = json.loads(metadata.get(MERGED_KEY, "[]"))
    except (ValueError, RecursionError):
        return []
    return before if isinstance(before, list) else []


@dataclass(frozen=True)
class Part:
    """The rows of a layer that one tensor of the file holds, and what is added to them."""

    updates: tuple[Weighted, ...]
    operation: str

    def add(self, stored: Tensor) -> Tensor:
        """The tensor with everything added, in the file's order of rows, float32."""
        ours = apply_operation(self.operation, stored.float())
        add = add_updates if stored.ndim > 1 else add_bias_updates
        return undo_operation(self.operation, add(ours, self.updates))


class Merger:
    """From the findings on a transformer's file and the updates by layer to the tensors of the new file."""

    def __init__(
        self, findings: Findings, tensors: Mapping[str, Tensor], updates: Mapping[str, Sequence[Weighted]]
    ) -> None:
        self.findings, self.tensors, self.updates = findings, tensors, updates
        self.places: dict[str, tuple[str, Source]] = {
            findings.name_in_file(source.name): (ours, source)
            for ours, sources in findings.sources.items()
            for source in sources
        }

    def pieces(self) -> list[Piece]:
        """All tensors of the file, those of changed layers to be made anew. Raises UnsupportedFile."""
        made: dict[str, Piece] = {}
        for name, tensor in self.tensors.items():
            part = self._part(name)
            if part is None:
                made.setdefault(name, piece_of(name, tensor))
                continue
            scale = self._scale_of(name)
            self._check_storage(name, tensor, scale)
            make: Callable[[], Tensor]
            if scale is None:
                make = partial(_stored_plain, part, tensor)
            else:
                make = partial(_stored_scaled, part, tensor, self.tensors[scale])
                made[scale] = self._changed(scale, partial(_new_scale, part, tensor, self.tensors[scale]))
            made[name] = self._changed(name, make)
        return [made[name] for name in self.tensors]

    def _changed(self, name: str, make: Callable[[], Tensor]) -> Piece:
        return replace(piece_of(name, self.tensors[name]), make=make, changes=("merged",))

    def _part(self, name: str) -> Part | None:
        """What is added to a tensor; None for those that stay."""
        ours, source = self.places.get(name, ("", None))
        layer, _, leaf = ours.rpartition(".")
        if source is None or leaf not in ("weight", "bias") or layer not in self.updates:
            return None
        config = self.findings.config
        rows = part_rows(layer_sizes(config)[layer].out_features, source.parts, config.hidden_size)
        start = sum(rows[: source.part])
        cropped = crop_updates(self.updates[layer], start, start + rows[source.part])
        acting = tuple(
            (update, strength)
            for update, strength in cropped
            if (update.bias_diff is not None if leaf == "bias" else update.low_rank or update.diff is not None)
        )
        return Part(acting, source.operation) if acting else None

    def _scale_of(self, name: str) -> str | None:
        """The name of the scale beside a weight."""
        module, _, leaf = name.rpartition(".")
        names = (f"{module}.{scale}" for scale in SCALES)
        return next((scale for scale in names if scale in self.tensors), None) if leaf == "weight" else None

    def _check_storage(self, name: str, tensor: Tensor, scale: str | None) -> None:
        is_scaled = scale is not None
        fits = tensor.dtype in FP8_DTYPES if is_scaled else tensor.dtype.is_floating_point
        if not fits or (scale is not None and self.tensors[scale].numel() != 1):
            raise UnsupportedFile(f"{name} {_UNMERGEABLE}")


def _dense(tensor: Tensor, scale: Tensor) -> Tensor:
    return tensor.float() * scale.float().reshape(())


def _stored_plain(part: Part, tensor: Tensor) -> Tensor:
    added = part.add(tensor)
    return cast_fp8(added, tensor.dtype) if tensor.dtype in FP8_DTYPES else added.to(tensor.dtype)


def _stored_scaled(part: Part, tensor: Tensor, scale: Tensor) -> Tensor:
    """The weight under its new scale, as that is stored."""
    added = part.add(_dense(tensor, scale))
    return cast_fp8(added / _fitting_scale(added, tensor.dtype, scale).float().reshape(()), tensor.dtype)


def _new_scale(part: Part, tensor: Tensor, scale: Tensor) -> Tensor:
    return _fitting_scale(part.add(_dense(tensor, scale)), tensor.dtype, scale)


def _fitting_scale(weight: Tensor, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A weight's scale in fp8, stored as `like` is."""
    return quantize_fp8(weight, dtype)[1].to(like.dtype).reshape(like.shape)

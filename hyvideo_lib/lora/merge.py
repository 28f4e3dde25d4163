"""A transformer's file with a LoRA added into its weights: same names, same layout, other numbers.

What becomes of each tensor is in `merger`; here is which files can be merged, and what is told of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..atomic import check_output, whole_file
from ..checkpoint.examine import Findings, examine
from ..checkpoint.folder import map_header, open_header
from ..checkpoint.keymaps import COMPANIONS
from ..checkpoint.scale_map import map_beside, read_scale_map
from ..checkpoint.variants import KIND_NAMES
from ..checkpoint.write import write_safetensors
from ..errors import InvalidSetting, UnsupportedFile, WrongKind
from ..host import HeadlessHost, Host
from .attaching import LoraUse, collect_updates
from .blocks import ALL_BLOCKS, BlockChoice
from .coverage import Coverage
from .merger import Merger
from .read import read_lora

STORAGES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
MERGED_KEY = "hyvideo.merged"
"""In the new file's metadata: which LoRAs are in it, as JSON."""


@dataclass(frozen=True)
class Merged:
    """What a merge did. tensors, changed: how many the new file has, and of how many the numbers are new.

    loras: all that are in it, those of earlier merges first. rounding: norm of what rounding did to the changed weights
    over the norm of what was added to them. stored: what the changed tensors are stored as.
    """

    path: Path
    tensors: int
    changed: int
    loras: tuple[Mapping[str, Any], ...]
    coverage: Coverage
    rounding: float
    stored: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON object."""
        return {
            "file": str(self.path),
            "tensors": self.tensors,
            "changed": self.changed,
            "loras": list(self.loras),
            "coverage": self.coverage.to_dict(),
            "rounding": self.rounding,
            "stored": list(self.stored),
        }


def merge_lora(
    source: str | Path,
    lora: str | Path,
    target: str | Path,
    strength: float = 1.0,
    blocks: BlockChoice = ALL_BLOCKS,
    overwrite: bool = False,
    host: Host | None = None,
    storage: str | None = None,
) -> Merged:
    """Write `target` from the transformer `source` with a LoRA added.

    storage: of the weights that are changed, one of STORAGES; None keeps 16 and 32 bits, and makes bfloat16 of fewer.
    Raises what reading the two files raises, WrongKind, UnsupportedFile (weights in GGUF's blocks or with their scales
    in another file), InvalidSetting (also for a LoRA that changes nothing), OutputExists, OutputNotWritable, DiskFull,
    Interrupted.
    """
    target, host = Path(target), host or HeadlessHost()
    if target.suffix != ".safetensors":
        raise InvalidSetting(f"The new file is called {target.name!r}, but its name must end in .safetensors.")
    if storage is not None and storage not in STORAGES:
        raise InvalidSetting(f"The storage is {storage!r}, but must be one of {', '.join(STORAGES)}.")
    header = open_header(Path(source))
    findings = examine(header, kinds=("transformer",))
    _check_base(findings)
    use = LoraUse(read_lora(lora, findings.config), strength, blocks)
    idle = use.idle_reason()
    if idle:
        raise InvalidSetting(f"{idle} The new file would be a copy.")
    dtype = getattr(torch, storage) if storage else None
    merger = Merger(findings, map_header(header), collect_updates([use]), dtype)
    pieces = merger.pieces()
    metadata = merger.metadata(header.metadata)
    check_output(target, overwrite)
    host.stage("merging", len(pieces))
    name = Path(lora).name or Path(lora).resolve().name
    merged = [*_merged_before(header.metadata), {"file": name, "strength": strength}]
    with whole_file(target, overwrite) as temporary:
        write_safetensors(temporary, pieces, {**metadata, MERGED_KEY: json.dumps(merged)}, host)
        if not merger.loss.has_changed:
            raise InvalidSetting(
                f"{use.lora.coverage.file} changes no number of {header.path.name}: what it adds is lost in rounding. "
                "Choose a larger strength, or another --storage. Nothing was written."
            )
    changed = [piece for piece in pieces if piece.changes]
    numbers = (piece for piece in changed if piece.name.rpartition(".")[2] not in COMPANIONS)
    stored = sorted({str(piece.dtype).removeprefix("torch.") for piece in numbers})
    return Merged(target, len(pieces), len(changed), tuple(merged), use.lora.coverage, merger.loss.share, tuple(stored))


def _check_base(findings: Findings) -> None:
    """Raises WrongKind or UnsupportedFile for a file that no LoRA can be merged into."""
    header = findings.header
    if findings.kind != "transformer" or findings.reason:
        what = KIND_NAMES.get(findings.kind, findings.kind)
        error = WrongKind if findings.kind not in ("transformer", "unknown") else UnsupportedFile
        raise error(f"A LoRA cannot be merged into {header.path.name}, which is {what}. {findings.reason}".strip())
    if header.format == "gguf":
        raise UnsupportedFile(
            f"{header.path.name} is a GGUF file, whose blocks cannot stay in the new file. Convert it to bf16 first "
            "(hyvideo convert --storage bfloat16), or use the LoRA unmerged, which works with every storage."
        )
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

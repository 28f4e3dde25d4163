"""The tensors of a transformer's file with LoRAs added into its weights, made one by one as they are written.

A weight that is changed is dequantised, added to in float32 and rounded once. Rounded back to 8 bits it would lose a
large part of what a LoRA adds, which is smaller than the steps between their numbers; so it is stored in 16 bits,
without the scale that it had, unless another storage is asked for. All others stay as they are, to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..checkpoint.assemble import part_name
from ..checkpoint.descriptions import own_contents
from ..checkpoint.examine import Findings
from ..checkpoint.keymaps import COMPANIONS, Source, apply_operation, part_rows, undo_operation
from ..checkpoint.lora_layers import layer_sizes
from ..checkpoint.pieces import Piece, piece_of
from ..errors import UnsupportedFile
from ..quant import FP8_DTYPES, cast_fp8, quantize_fp8
from ..quant.comfy_quant import METADATA_KEY
from ..quant.schemes import unpack
from ..quant.stored import StoredWeight
from .update import Weighted, add_bias_updates, add_updates

SCALES = ("fp8_scale", "scale_weight", "weight_scale")
"""Names of the scale beside a weight in fp8."""
DEFAULT_STORAGE = torch.bfloat16
"""Of weights that were stored in 8 bits or fewer and are changed."""


@dataclass
class Loss:
    """What rounding does to what is added, in squared norms, over all weights that were made so far."""

    added: float = 0.0
    rounded: float = 0.0
    has_changed: bool = False

    @property
    def share(self) -> float:
        """Norm of the rounding error over the norm of what is added; 0 before anything was."""
        return math.sqrt(self.rounded / self.added) if self.added else 0.0

    def count(self, before: Tensor, wanted: Tensor, stored: Tensor) -> None:
        """One tensor as it was, as it should be and as it is stored, in float32."""
        self.added += float((wanted - before).double().square().sum())
        self.rounded += float((stored - wanted).double().square().sum())
        self.has_changed |= not torch.equal(stored, before)


@dataclass(frozen=True)
class Part:
    """Rows start..stop of a layer, or those elements of its bias, which one tensor of the file holds."""

    layer: str
    leaf: str
    start: int
    stop: int
    source: Source


@dataclass
class Merger:
    """From the findings on a transformer's file and the updates by layer to the tensors of the new file.

    storage: of the weights that are changed, fp8 of those alone that had no more; None keeps 16 and 32 bits, and makes
    16 of fewer.
    """

    findings: Findings
    tensors: Mapping[str, Tensor]
    updates: Mapping[str, Sequence[Weighted]]
    storage: torch.dtype | None = None
    loss: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        self._places = {
            self.findings.name_in_file(source.name): (ours, source)
            for ours, sources in self.findings.sources.items()
            for source in sources
        }
        self._stored = self._unpack()

    def pieces(self) -> list[Piece]:
        """All tensors of the new file, those of changed layers to be made anew. Raises UnsupportedFile."""
        made: dict[str, Piece | None] = {}
        for name, tensor in self.tensors.items():
            part = self._part(name)
            if part is None:
                made.setdefault(name, piece_of(name, tensor))
                continue
            made.update(self._changed(name, part))
        return [piece for name in self.tensors if (piece := made[name]) is not None]

    def metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The file's, without what it says of the storage of weights that lost it."""
        kept = dict(metadata)
        text = kept.get(METADATA_KEY)
        if text is None:
            return kept
        table = json.loads(text)
        gone = {name for module in self._restored() for name in module}
        table["layers"] = {layer: entry for layer, entry in table["layers"].items() if layer not in gone}
        if table["layers"]:
            kept[METADATA_KEY] = json.dumps(table)
        else:
            del kept[METADATA_KEY]
        return kept

    def _restored(self) -> list[tuple[str, str]]:
        """The modules whose weights are stored in another form than before: as the file calls them, and bare."""
        modules = []
        for name in self.tensors:
            part = self._part(name)
            if part is not None and part.leaf == "weight" and not self._keeps_scale(name):
                modules.append((name.rpartition(".")[0], part.source.name.rpartition(".")[0]))
        return modules

    def _changed(self, name: str, part: Part) -> dict[str, Piece | None]:
        """The new tensor and what becomes of its companions, by the file's names; None: left out."""
        tensor = self.tensors[name]
        module = name.rpartition(".")[0]
        companions = [f"{module}.{leaf}" for leaf in COMPANIONS if f"{module}.{leaf}" in self.tensors]
        if part.leaf != "weight":
            companions = []
        shape = self._shape(name, part)
        if not self._keeps_scale(name):
            dtype = self._dtype(tensor, part)
            piece = self._piece(name, shape, dtype, partial(self._make, part, shape, dtype))
            return {name: piece, **dict.fromkeys(companions)}
        scale = self._scale_of(name)
        kept = self.tensors[scale]
        return {
            name: self._piece(name, shape, tensor.dtype, partial(self._make_scaled, name, part)),
            scale: self._piece(scale, tuple(kept.shape), kept.dtype, partial(self._make_scale, name, part)),
        }

    def _piece(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor]) -> Piece:
        return replace(piece_of(name, self.tensors[name]), shape=shape, dtype=dtype, make=make, changes=("merged",))

    def _dtype(self, tensor: Tensor, part: Part) -> torch.dtype:
        if part.leaf != "weight" or layer_sizes(self.findings.config)[part.layer].is_vector:
            return tensor.dtype
        is_small = not tensor.is_floating_point() or tensor.dtype.itemsize == 1
        if self.storage is not None and (is_small or self.storage not in FP8_DTYPES):
            return self.storage
        return DEFAULT_STORAGE if is_small else tensor.dtype

    def _keeps_scale(self, name: str) -> bool:
        """Whether a weight stays in fp8 with one scale, which is then a new one."""
        if self.storage not in FP8_DTYPES or not name.endswith(".weight") or not self._scale_of(name):
            return False
        tensor, scale = self.tensors[name], self.tensors[self._scale_of(name)]
        if tensor.dtype != self.storage or scale.numel() != 1:
            raise UnsupportedFile(
                f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')} with {scale.numel()} scales, which "
                f"cannot become {str(self.storage).removeprefix('torch.')}. Leave --storage out, or choose bfloat16."
            )
        return True

    def _scale_of(self, name: str) -> str:
        """The name of the scale beside a weight; empty without one."""
        module = name.rpartition(".")[0]
        return next((scale for each in SCALES if (scale := f"{module}.{each}") in self.tensors), "")

    def _part(self, name: str) -> Part | None:
        """Where a tensor belongs that something is added to; None for those that stay."""
        ours, source = self._places.get(name, ("", None))
        layer, _, leaf = ours.rpartition(".")
        if source is None or leaf not in ("weight", "bias") or layer not in self.updates:
            return None
        config = self.findings.config
        rows = part_rows(layer_sizes(config)[layer].out_features, source.parts, config.hidden_size)
        start = sum(rows[: source.part])
        stop = start + rows[source.part]
        acts = any(
            (update.bias_diff is not None if leaf == "bias" else update.has_weight)
            and max(start, update.start) < min(stop, update.stop)
            for update, _ in self.updates[layer]
        )
        return Part(layer, leaf, start, stop, source) if acts else None

    def _shape(self, name: str, part: Part) -> tuple[int, ...]:
        """Of the new tensor: blocks and packed numbers become numbers."""
        stored = self._stored.get(part_name(part.layer, part.source)) if part.leaf == "weight" else None
        return tuple(self.tensors[name].shape) if stored is None else tuple(stored.shape)

    # Numbers

    def _unpack(self) -> Mapping[str, StoredWeight]:
        """Weights that their numbers alone do not tell, by the names of their layers (and parts)."""
        bare = {name: self.tensors[info.name] for name, info in self.findings.file_header.tensors.items()}
        return unpack(self.findings.quantization, own_contents(self.findings, bare)).stored

    def _dense(self, ours: str, source: Source) -> Tensor:
        """A tensor's numbers in our order, float32."""
        layer, _, leaf = ours.rpartition(".")
        stored = self._stored.get(part_name(layer, source)) if leaf == "weight" else None
        if stored is not None:
            return stored.dense(torch.float32)
        return apply_operation(source.operation, self.tensors[self.findings.name_in_file(source.name)].float())

    def _base(self, layer: str, first: int, last: int) -> Tensor:
        """Rows first..last of a layer's stored weight as a matrix, float32."""
        ours = f"{layer}.weight"
        found, start = [], 0
        for source in self.findings.sources[ours]:
            config = self.findings.config
            count = part_rows(layer_sizes(config)[layer].out_features, source.parts, config.hidden_size)[source.part]
            low, high = max(first - start, 0), min(last - start, count)
            if low < high:
                found.append(self._dense(ours, source).flatten(1)[low:high])
            start += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def _merged(self, part: Part) -> tuple[Tensor, Tensor]:
        """The tensor's numbers before and after, in our order, float32."""
        before = self._dense(f"{part.layer}.{part.leaf}", part.source)
        updates = self.updates[part.layer]
        if part.leaf == "bias":
            return before, add_bias_updates(before, updates, part.start)
        return before, add_updates(before, updates, partial(self._base, part.layer), part.start)

    def _make(self, part: Part, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        before, wanted = self._merged(part)
        stored = cast_fp8(wanted, dtype) if dtype in FP8_DTYPES else wanted.to(dtype)
        self.loss.count(before, wanted, stored.float())
        return undo_operation(part.source.operation, stored).reshape(shape)

    def _make_scaled(self, name: str, part: Part) -> Tensor:
        """The weight under its new scale, as that is stored."""
        before, wanted = self._merged(part)
        scale = self._fitting_scale(name, wanted).float().reshape(())
        stored = cast_fp8(wanted / scale, self.tensors[name].dtype)
        self.loss.count(before, wanted, stored.float() * scale)
        return undo_operation(part.source.operation, stored)

    def _make_scale(self, name: str, part: Part) -> Tensor:
        return self._fitting_scale(name, self._merged(part)[1])

    def _fitting_scale(self, name: str, weight: Tensor) -> Tensor:
        """A weight's scale in fp8, stored as the one that it had."""
        like = self.tensors[self._scale_of(name)]
        return quantize_fp8(weight, self.tensors[name].dtype)[1].to(like.dtype).reshape(like.shape)

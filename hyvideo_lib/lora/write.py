"""A LoRA to a file, in any family: also a fused layer's product cut into parts and parts joined again.

Fused to split: q, k and v (and the MLP) share `down`, and `up` is cut into their rows. Split to fused: the parts' down
matrices one below the other, their up matrices on a diagonal of blocks; where all parts have one and the same down
matrix, it is kept once, so fused to split and back is the same bits. Whole deltas are cut and joined by rows likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import whole_file
from ..checkpoint.keymap_tables import SWAP_HALVES
from ..checkpoint.keymaps import part_rows, their_names, undo_operation
from .update import LowRank


@dataclass(frozen=True)
class Family:
    """How a file names its tensors. layout: whose module names; down, up: suffixes; has_alpha: alpha as a tensor.

    Without alpha the scale is multiplied into `up`.
    """

    prefix: str
    layout: str
    down: str
    up: str
    is_underscored: bool = False
    has_alpha: bool = False


KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
FAMILIES = {
    "kohya": Family("lora_unet_", "tencent", *KOHYA, is_underscored=True, has_alpha=True),
    "comfyui_kohya": Family("lora_unet_", "comfyui", *KOHYA, is_underscored=True, has_alpha=True),
    "diffusion_pipe": Family("transformer.", "tencent", *PEFT),
    "comfyui": Family("diffusion_model.", "comfyui", *KOHYA, has_alpha=True),
    "tencent_i2v": Family("Hunyuan_video_I2V_lora_", "tencent", *KOHYA, is_underscored=True, has_alpha=True),
    "diffusers": Family("transformer.", "diffusers", *PEFT),
    "peft": Family("base_model.model.", "tencent", ".lora_A.default.weight", ".lora_B.default.weight"),
    "onetrainer": Family("lora_transformer_", "diffusers", *KOHYA, is_underscored=True, has_alpha=True),
    "plain": Family("", "diffusers", *PEFT),
}
"""The families that a LoRA can be written in."""


def split_rows(matrix: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """A fused weight, delta or up matrix [sum(rows), ...] as its parts: views, one below the other."""
    return list(matrix.split(list(rows)))


def join_rows(parts: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor:
    """Parts one below the other; a part that is None is zero. The inverse of `split_rows`, to the bit."""
    known = next(part for part in parts if part is not None)
    filled = [
        known.new_zeros(count, *known.shape[1:]) if part is None else part
        for part, count in zip(parts, rows, strict=True)
    ]
    return torch.cat(filled)


def split_low_rank(fused: LowRank, rows: Sequence[int]) -> list[LowRank]:
    """A product for each part: the same down matrix, and the part's rows of up."""
    return [LowRank(fused.down, up, fused.scale) for up in split_rows(fused.up, rows)]


def join_low_rank(parts: Sequence[LowRank | None], rows: Sequence[int]) -> LowRank:
    """One product for all parts; one that is None adds nothing. The inverse of `split_low_rank`, to the bit.

    Where down matrices or scales differ, the rank is the sum of the parts' and the scales go into `up`.
    """
    known = [part for part in parts if part is not None]
    first = known[0]
    if all(part.scale == first.scale and torch.equal(part.down, first.down) for part in known):
        return LowRank(first.down, join_rows([None if part is None else part.up for part in parts], rows), first.scale)
    up = torch.zeros(sum(rows), sum(part.rank for part in known))
    row = column = 0
    for part, count in zip(parts, rows, strict=True):
        if part is not None:
            up[row : row + count, column : column + part.rank] = part.up.float() * part.scale
            column += part.rank
        row += count
    return LowRank(torch.cat([part.down for part in known]), up.to(first.up.dtype))


def lora_tensors(layers: Mapping[str, LowRank], family: str, hidden_size: int) -> dict[str, Tensor]:
    """A LoRA's tensors by the names of a family. layers: products by Tencent's names of the layers."""
    form = FAMILIES[family]
    tensors: dict[str, Tensor] = {}
    for layer, product in layers.items():
        sources = their_names("transformer", form.layout, layer)
        rows = part_rows(product.up.shape[0], len(sources), hidden_size)
        for source, part in zip(sources, split_low_rank(product, rows), strict=True):
            name = form.prefix + (source.name.replace(".", "_") if form.is_underscored else source.name)
            up = undo_operation(SWAP_HALVES, part.up) if source.operation == SWAP_HALVES else part.up
            if form.has_alpha:
                tensors[f"{name}.alpha"] = torch.tensor(part.scale * part.rank)
            elif part.scale != 1:
                up = (up.float() * part.scale).to(up.dtype)
            tensors[name + form.down], tensors[name + form.up] = part.down, up
    return tensors


def write_lora(
    path: Path, layers: Mapping[str, LowRank], family: str, hidden_size: int, overwrite: bool = False
) -> None:
    """Write a LoRA in one of FAMILIES; whole or not at all. Raises OutputExists, OutputNotWritable, DiskFull."""
    from safetensors.torch import save_file  # a slow import that reading does without

    tensors = lora_tensors(layers, family, hidden_size)
    with whole_file(path, overwrite) as temporary:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary, {"format": "pt"})

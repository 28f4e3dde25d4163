"""One lean block with a LoRA, which is merged into a copy of the weight where that is less work, otherwise beside it.

Against the same block with the LoRA always beside it, and without any: time, memory, and the largest difference of the
outputs, which without the LoRA is what it does. All token-wide layers have one of the same rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from benchmarks.cases import Case, all_rows
from benchmarks.lean import QUICK_GRID, SMALL, TEXT, Block
from benchmarks.measure import Side, compared
from benchmarks.products import SHORT_GRID, WIDE, in_fp8
from benchmarks.rows import OURS, Options, Row
from benchmarks.transformer import build
from hyvideo_lib.checkpoint.lora_layers import adaptable_layers
from hyvideo_lib.lora import LowRank
from hyvideo_lib.lora.adapters import LinearAdapter
from hyvideo_lib.lora.update import Update
from hyvideo_lib.transformer import HunyuanVideoTransformer, LeanConfig, TransformerConfig
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.ops import Adapter, Linear
from hyvideo_lib.transformer.rope import rotation_tables

RANK = 32
EFFECT = 0.03
"""Of the LoRA on a layer's output, about, relative to it."""
GRIDS = (SHORT_GRID, (16, 28, 28))
"""Too few tokens to merge anything, and enough for all layers."""
FP8, STORED = "stored in fp8", "stored as computed"


class Beside(LinearAdapter):
    """Adds to the layer's output, however many tokens there are."""

    def merging(self, tokens: int) -> None:
        return None


def run(options: Options) -> Iterator[Row]:
    config, grids = (SMALL, (QUICK_GRID,)) if options.is_quick else (WIDE, GRIDS)
    for dtype in options.dtypes:
        yield from all_rows(adapter_cases("adapters", config, grids, dtype, options), options)


def adapter_cases(
    benchmark: str,
    config: TransformerConfig,
    grids: Sequence[tuple[int, int, int]],
    dtype: torch.dtype,
    options: Options,
) -> Iterator[Case]:
    """Both kinds of block, over (T, H, W) image tokens and a full text."""
    device = options.device
    for storage in (STORED, FP8):
        model = build(config, dtype, device) if storage == STORED else in_fp8(config, dtype, device)
        merging, beside = (make_adapters(model, kind, device) for kind in (LinearAdapter, Beside))
        for grid in grids:
            turn = rotation_tables(grid, config.rope_axes, config.rope_theta, device=device)
            generator = torch.Generator(device).manual_seed(1)
            shape = 1, len(turn) + TEXT, config.hidden_size
            x = torch.randn(shape, device=device, dtype=dtype, generator=generator)
            condition = Condition(torch.randn(1, shape[2], device=device, dtype=dtype, generator=generator))
            for kind in ("double", "single"):
                case = f"{kind} block, {shape[1]} tokens, {str(dtype).removeprefix('torch.')}, {storage}, rank {RANK}"
                block = Block(getattr(model, f"{kind}_blocks")[0], x, condition, turn, LeanConfig())
                ours = with_adapters(model, merging, block.lean)
                for peer, other in (("beside", beside), ("without", {})):
                    sides = {OURS: ours, peer: with_adapters(model, other, block.lean)}
                    name = f"{case}, {peer}"
                    yield Case(name, partial(compared, benchmark, name, sides, options))


def make_adapters(
    model: HunyuanVideoTransformer, kind: type[LinearAdapter], device: torch.device
) -> dict[str, LinearAdapter]:
    """One of that kind for every token-wide layer of the blocks, the same numbers every time."""
    generator = torch.Generator(device).manual_seed(2)
    modulating = {id(modulation.linear) for modulation in model.modulations}
    adapters = {}
    for name, size in adaptable_layers(model).items():
        layer = model.get_submodule(name)
        if "_blocks." not in name or size.is_vector or id(layer) in modulating:
            continue
        down = torch.randn(RANK, size.in_features, device=device, generator=generator)
        up = torch.randn(size.out_features, RANK, device=device, generator=generator)
        scale = EFFECT * RANK**-0.5 * cast(Linear, layer).dense_weight(torch.float32).std().item()
        adapters[name] = kind(size, [(Update(0, size.out_features, LowRank(down, up, scale)), 1.0)])
    return adapters


def with_adapters(model: HunyuanVideoTransformer, adapters: dict[str, LinearAdapter], side: Side) -> Side:
    """The call with these alone on the model's layers."""

    def call() -> Tensor:
        for name in adaptable_layers(model):
            layer = cast(Linear, model.get_submodule(name))
            own: tuple[Adapter, ...] = (adapters[name],) if name in adapters else ()
            layer.adapters = own
        return side()

    return call

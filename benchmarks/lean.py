"""One block in its lean form against the plain one: memory and time by head groups, with what sizes alone predict.

Both sides hold their own copy of the residual stream. The prediction is a run without numbers for ours
(memory.dry_run), and for the plain blocks their token-wide buffers (see the README). For the released model, at the
sizes of videos, both sides are run without numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from benchmarks.measure import Side, compare
from benchmarks.rows import OURS, Options, Row, compared_rows, counted_row
from benchmarks.transformer import MID, QUICK, build
from hyvideo_lib.checkpoint.blueprint import build_meta_transformer
from hyvideo_lib.memory.dry_run import count_peak
from hyvideo_lib.pipeline.sketch import RELEASED
from hyvideo_lib.transformer import LeanConfig, lean
from hyvideo_lib.transformer.blocks import DoubleBlock, SingleBlock
from hyvideo_lib.transformer.lean import Form
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.rope import RotationTables, rotation_tables

SMALL = replace(QUICK, num_heads=2, rope_axes=(16, 24, 24))
GRID, QUICK_GRID, TEXT = (16, 16, 16), (2, 4, 4), 256
PLAIN_BUFFERS = {"double": 16, "single": 20}
"""Token-wide buffers at the fullest moment of a plain block."""
LEANS = (LeanConfig(), LeanConfig(2), LeanConfig(3), LeanConfig(6), LeanConfig(6, 256))
VIDEOS = {"512x320x61": (16, 20, 32), "848x480x129": (33, 30, 53), "1280x720x129": (33, 45, 80)}
"""Grids (T, H, W) of tokens."""
COUNTED = tuple(LeanConfig(count) for count in (1, 2, 3, 6, 24))


def run(options: Options) -> Iterator[Row]:
    config, grid = (SMALL, QUICK_GRID) if options.is_quick else (MID, GRID)
    for dtype in options.dtypes:
        model = build(config, dtype, options.device)
        double, single = model.double_blocks[0], model.single_blocks[0]
        assert isinstance(double, DoubleBlock)
        assert isinstance(single, SingleBlock)
        turn = rotation_tables(grid, config.rope_axes, config.rope_theta, device=options.device)
        torch.manual_seed(1)
        x = torch.randn(1, len(turn) + TEXT, config.hidden_size).to(options.device, dtype)
        condition = Condition(torch.randn(1, config.hidden_size).to(options.device, dtype))
        for kind, chosen in ((kind, chosen) for kind in PLAIN_BUFFERS for chosen in LEANS):
            case = f"{kind} block, {x.shape[1]} tokens, {str(dtype).removeprefix('torch.')}, {describe(chosen)}"
            if options.wants(case):
                block = Block(double if kind == "double" else single, x, condition, turn, chosen)
                bare = copy.deepcopy(block.block).to("meta"), x.to("meta"), Condition(condition.vec.to("meta"))
                table = rotation_tables(grid, config.rope_axes, config.rope_theta, device="meta")
                said = count_peak(Block(*bare, table, chosen).lean)
                for row in compared_rows("lean", case, *compare(block.sides(), options.repeats, options.device)):
                    ratio = {"predicted_working_memory": said / (PLAIN_BUFFERS[kind] * x.nbytes)}
                    yield {**row, **(ratio if row["side"] == "ratio" else {})}
    yield from count(options)


def count(options: Options) -> Iterator[Row]:
    """The released model's blocks at the sizes of videos."""
    config = replace(RELEASED, num_double_blocks=1, num_single_blocks=1)
    model = build_meta_transformer(config, torch.bfloat16).to(torch.bfloat16)
    condition = Condition(torch.empty(1, config.hidden_size, dtype=torch.bfloat16, device="meta"))
    for video, grid in VIDEOS.items():
        turn = rotation_tables(grid, config.rope_axes, config.rope_theta, device="meta")
        x = torch.empty(1, len(turn) + TEXT, config.hidden_size, dtype=torch.bfloat16, device="meta")
        for kind, block in (("double", model.double_blocks[0]), ("single", model.single_blocks[0])):
            for chosen in COUNTED:
                case = f"released model's {kind} block, {video}, bfloat16, {describe(chosen)}"
                if options.wants(case):
                    both = Block(cast(DoubleBlock | SingleBlock, block), x, condition, turn, chosen)
                    yield counted_row("lean", case, "plain", count_peak(both.lean), count_peak(both.plain))


def describe(config: LeanConfig) -> str:
    chunk = "" if config.chunk_tokens is None else f", chunks of {config.chunk_tokens}"
    return f"{config.head_groups} head group{'s' * (config.head_groups > 1)}{chunk}"


class Block:
    """One block over given tokens in both forms."""

    def __init__(
        self,
        block: DoubleBlock | SingleBlock,
        x: Tensor,
        condition: Condition,
        turn: RotationTables,
        config: LeanConfig,
        form: Form | None = None,
    ) -> None:
        self.block, self.x, self.condition, self.turn = block, x, condition, turn
        self.form = form or Form(config)
        self.rotation = turn.rows(0, len(turn))

    def sides(self) -> dict[str, Side]:
        return {OURS: self.lean, "plain": self.plain}

    def plain(self) -> Tensor:
        x, n = self.x.clone(), len(self.turn)
        if isinstance(self.block, SingleBlock):
            return self.block(x, self.condition, self.rotation, None)[:, :n]
        return self.block(x[:, :n], x[:, n:], self.condition, self.rotation, None)[0]

    def lean(self) -> Tensor:
        x, n = self.x.clone(), len(self.turn)
        if isinstance(self.block, SingleBlock):
            lean.single_block(self.block, x, self.condition, self.turn, None, self.form)
        else:
            lean.double_block(self.block, x[:, :n], x[:, n:], self.condition, self.turn, None, self.form)
        return x[:, :n]

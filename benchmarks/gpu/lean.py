"""One block of true size in its lean form against the plain one, by head groups: time and working memory.

Both sides hold their own copy of the residual stream, and attend by what PyTorch takes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.gpu.clips import TEXT_TOKENS, Clip, clips
from benchmarks.gpu.kernels import shared_kernel, warm_up
from benchmarks.gpu.step import config_of
from benchmarks.gpu.table import Table
from benchmarks.lean import Block, describe
from benchmarks.measure import compare
from benchmarks.rows import Options, Row, compared_rows
from benchmarks.transformer import build
from hyvideo_lib.memory.plan import block_flops
from hyvideo_lib.transformer import HunyuanVideoTransformer, LeanConfig
from hyvideo_lib.transformer.blocks import DoubleBlock, SingleBlock
from hyvideo_lib.transformer.lean import head_groups
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.rope import rotation_tables

ORDER = (2, 0, 3)
"""Of the sizes: a middle one, the largest, the smallest."""
GROUPS = (1, 2, 3, 6, 24)


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    table = Table("gpu lean", options)
    yield from table.rows_of(Blocks(table.benchmark, options).cases())


class Blocks:
    """One block of each kind with random weights in bfloat16."""

    def __init__(self, benchmark: str, options: Options) -> None:
        self._benchmark, self._options = benchmark, options
        self._config = replace(config_of(options), num_double_blocks=1, num_single_blocks=1)
        self._model = cache(self._make)

    def cases(self) -> Iterator[Case]:
        sizes, config = clips(self._options.is_quick), self._config
        for clip in [sizes[place] for place in ORDER if place < len(sizes)]:
            for kind in ("double", "single"):
                for count in GROUPS:
                    chosen = LeanConfig(count)
                    case = f"{kind} block, {clip.name} ({clip.tokens} tokens), {describe(chosen)}"
                    work = block_flops(config.hidden_size, config.mlp_ratio, clip.tokens)
                    yield Case(case, partial(self._rows, case, clip, kind, chosen), work=work)

    def _make(self) -> HunyuanVideoTransformer:
        return build(self._config, torch.bfloat16, self._options.device)

    def _rows(self, case: str, clip: Clip, kind: str, chosen: LeanConfig) -> Iterator[Row]:
        model, device, config = self._model(), self._options.device, self._config
        frames, height, width = clip.latents
        turn = rotation_tables((frames, height // 2, width // 2), config.rope_axes, config.rope_theta, device=device)
        x = self._noise(1, len(turn) + TEXT_TOKENS, config.hidden_size)
        block = (model.double_blocks if kind == "double" else model.single_blocks)[0]
        both = Block(
            cast(DoubleBlock | SingleBlock, block), x, Condition(self._noise(1, config.hidden_size)), turn, chosen
        )
        groups = head_groups(config.num_heads, chosen.head_groups)
        for heads in {config.num_heads, *(last - first for first, last in groups)}:
            warm_up(device, torch.bfloat16, heads, x.shape[1], config.head_dim)
        kernel = shared_kernel(device, torch.bfloat16, config.head_dim)
        for row in compared_rows(self._benchmark, case, *compare(both.sides(), self._options.repeats, device)):
            yield {**row, "attention": kernel}

    def _noise(self, *shape: int) -> Tensor:
        generator = torch.Generator(self._options.device).manual_seed(1)
        return torch.randn(shape, generator=generator, device=self._options.device, dtype=torch.bfloat16)

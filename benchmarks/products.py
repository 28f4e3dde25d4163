"""One lean block with its matrix products in 8 bits against the same block with dense ones: time, memory, difference.

The weights rest in fp8 on both sides. Dense products cast them once per block to the compute dtype; int8 and fp8 by
rows round each row once per block, and each token every time. The difference is to the dense side's output, relative
to its largest number: it is the price, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.cases import Case, all_rows
from benchmarks.lean import QUICK_GRID, SMALL, TEXT, Block
from benchmarks.measure import compared
from benchmarks.rows import OURS, Options, Row, skipped_row
from benchmarks.transformer import MID, build
from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.quant import PRODUCTS, plain_fp8_state_dict, probe_product, use_product
from hyvideo_lib.transformer import HunyuanVideoTransformer, LeanConfig, TransformerConfig
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.rope import rotation_tables

WIDE = replace(MID, hidden_size=3072, num_heads=24, num_double_blocks=1, num_single_blocks=1)
"""The released model's blocks, one of each kind."""
SHORT_GRID = (4, 16, 16)
DENSE = "dense"


def run(options: Options) -> Iterator[Row]:
    config, grid = (SMALL, QUICK_GRID) if options.is_quick else (WIDE, SHORT_GRID)
    for dtype in options.dtypes:
        yield from all_rows(product_cases("products", config, grid, dtype, options), options)


def product_cases(
    benchmark: str, config: TransformerConfig, grid: tuple[int, int, int], dtype: torch.dtype, options: Options
) -> Iterator[Case]:
    """Every product against dense, in both kinds of block, over (T, H, W) image tokens and a full text."""
    dense, device = in_fp8(config, dtype, options.device), options.device
    turn = rotation_tables(grid, config.rope_axes, config.rope_theta, device=device)
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(1, len(turn) + TEXT, config.hidden_size, device=device, dtype=dtype, generator=generator)
    condition = Condition(torch.randn(1, config.hidden_size, device=device, dtype=dtype, generator=generator))

    def rows(case: str, kind: str, name: str, model: HunyuanVideoTransformer) -> Iterator[Row]:
        try:
            probe_product(name, device, dtype)
        except InvalidSetting as error:
            yield skipped_row(benchmark, case, OURS, str(error))
            return
        use_product(model, name)
        blocks = {side: getattr(owner, f"{kind}_blocks")[0] for side, owner in ((OURS, model), (DENSE, dense))}
        sides = {side: Block(block, x, condition, turn, LeanConfig()).lean for side, block in blocks.items()}
        yield from compared(benchmark, case, sides, options)

    for name in PRODUCTS:
        other = in_fp8(config, dtype, device)
        for kind in ("double", "single"):
            case = f"{kind} block, {x.shape[1]} tokens, {str(dtype).removeprefix('torch.')}, {name}"
            yield Case(case, partial(rows, case, kind, name, other))


def in_fp8(config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> HunyuanVideoTransformer:
    """A model of random weights that rest in fp8."""
    model = build(config, dtype, device)
    model.load_state_dict(plain_fp8_state_dict(model.state_dict()), assign=True)
    return model.requires_grad_(False)

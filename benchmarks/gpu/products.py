"""Blocks of true size at 33k tokens, their matrix products in 8 bits against dense ones in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.table import Table
from benchmarks.lean import QUICK_GRID, SMALL
from benchmarks.products import WIDE, product_cases
from benchmarks.rows import Options, Row

GRID = (33, 30, 33)
"""Tokens of 848 x 480 pixels and 129 frames, nearly: 32,670."""


def run(options: Options) -> Iterator[Row]:
    config, grid = (SMALL, QUICK_GRID) if options.is_quick else (WIDE, GRID)
    (dtype,) = options.dtypes
    table = Table("gpu products", options)
    yield from table.rows_of(product_cases(table.benchmark, config, grid, dtype, options))

"""Blocks of true size at 33k tokens with a LoRA, merged into copies of the weights and beside them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.adapters import adapter_cases
from benchmarks.gpu.products import GRID
from benchmarks.gpu.table import Table
from benchmarks.lean import QUICK_GRID, SMALL
from benchmarks.products import WIDE
from benchmarks.rows import Options, Row


def run(options: Options) -> Iterator[Row]:
    config, grid = (SMALL, QUICK_GRID) if options.is_quick else (WIDE, GRID)
    (dtype,) = options.dtypes
    table = Table("gpu adapters", options)
    yield from table.rows_of(adapter_cases(table.benchmark, config, [grid], dtype, options))

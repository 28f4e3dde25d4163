"""Blocks of true size at 33k tokens, compiled in both scopes against as they are, with each product that there is."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.products import GRID
from benchmarks.gpu.table import Table
from benchmarks.lean import QUICK_GRID, SMALL
from benchmarks.pieces import block_cases
from benchmarks.products import DENSE, WIDE
from benchmarks.rows import OURS, Options, Row, skipped_row
from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.quant import PRODUCTS, probe_product


def run(options: Options) -> Iterator[Row]:
    config, grid = (SMALL, QUICK_GRID) if options.is_quick else (WIDE, GRID)
    (dtype,) = options.dtypes
    table = Table("gpu compiled", options)
    usable = [DENSE]
    for name in PRODUCTS:
        try:
            probe_product(name, options.device, dtype)
        except InvalidSetting as error:
            yield skipped_row(table.benchmark, name, OURS, str(error))
        else:
            usable.append(name)
    yield from table.rows_of(block_cases(table.benchmark, config, grid, dtype, usable, options))

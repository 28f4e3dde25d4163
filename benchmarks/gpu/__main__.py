"""`python -m benchmarks.gpu TABLE...` from the root of a checkout: JSON lines as it goes, then a table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import adapters, attention, caps, compiled, decode, lean, products, step, swapped, text
from benchmarks.gpu.card import device_of
from benchmarks.gpu.table import attempted
from benchmarks.rows import OURS, Options, Report

TABLES = {
    "attention": attention.run,
    "lean": lean.run,
    "products": products.run,
    "adapters": adapters.run,
    "compiled": compiled.run,
    "step": step.run,
    "swap": swapped.run,
    "caps": caps.run,
    "text": text.run,
    "decode": decode.run,
}
"""Name to a generator of rows."""
MINUTES = 9.0
REST = "the rest of the table"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="timed calls (default: 2)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        metavar="N",
        help=f"for each table; cases that would take longer are left out (default: {MINUTES:g})",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, says nothing about speed")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name contains this")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to this file as well")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu together with --quick (default: cuda)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named tables; 0, or 2 for words that make no sense here."""
    parser = build_parser()
    try:
        words = parser.parse_args(argv)
    except SystemExit as stop:
        return 2 if stop.code else 0
    unknown = [name for name in words.tables if name not in TABLES]
    problem = (
        f"unknown table {unknown[0]!r}; there are {', '.join(TABLES)}"
        if unknown
        else f"--repeats is {words.repeats}, but must be at least 1"
        if words.repeats < 1
        else f"--minutes is {words.minutes:g}, but must be more than 0"
        if not words.minutes > 0
        else "--device cuda: PyTorch sees no CUDA device"
        if words.device.startswith("cuda") and not torch.cuda.is_available()
        else "full sizes are for a card; a CPU can show with --quick that the scripts run"
        if words.device == "cpu" and not words.quick
        else None
    )
    if problem:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 2
    options = Options(
        repeats=words.repeats,
        is_quick=words.quick,
        only=words.only,
        device=device_of(words.device),
        dtypes=(torch.bfloat16,),
        folder=Path(tempfile.gettempdir()),
        minutes=words.minutes,
    )
    with Report(options, words.out) as report:
        for name in words.tables:
            for row in attempted(partial(TABLES[name], options), f"gpu {name}", REST, OURS, options.device):
                report.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks NAME...` from the root of a checkout, or `hyvideo bench NAME...`: JSON lines, then a table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Read when PyTorch is loaded: the memory profiler's library otherwise writes two lines to stderr per measurement.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from benchmarks import adapters, caches, demo, lean, load, pieces, plan, products, swap, transformer, vae
from benchmarks.rows import Options, Report

BENCHMARKS = {
    "transformer": transformer.run,
    "lean": lean.run,
    "products": products.run,
    "adapters": adapters.run,
    "pieces": pieces.run,
    "vae": vae.run,
    "load": load.run,
    "swap": swap.run,
    "caches": caches.run,
    "plan": plan.run,
    "demo": demo.run,
}
"""Name to a generator of rows."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hyvideo bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}, or all (default: all)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds of every case (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, says nothing about speed")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name contains this")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to this file as well")
    parser.add_argument("--json", action="store_true", help="JSON lines only, without the table at the end")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="only this dtype (default: both where both are measured)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the 13 GB file of `load` is made"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named benchmarks; 0, or 2 for words that make no sense."""
    parser = build_parser()
    try:
        words = parser.parse_args(argv)
    except SystemExit as stop:
        return 2 if stop.code else 0
    names = list(BENCHMARKS) if words.names in ([], ["all"]) else words.names
    unknown = [name for name in names if name not in BENCHMARKS]
    problem = (
        f"unknown benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)} and all"
        if unknown
        else f"--repeats is {words.repeats}, but must be at least 1"
        if words.repeats < 1
        else f"--folder {words.folder} is no folder"
        if not words.folder.is_dir()
        else "--device cuda: PyTorch sees no CUDA device"
        if words.device.startswith("cuda") and not torch.cuda.is_available()
        else None
    )
    if problem:
        print(f"hyvideo bench: {problem}", file=sys.stderr)
        return 2
    if words.threads:
        torch.set_num_threads(words.threads)
    options = Options(
        repeats=words.repeats,
        is_quick=words.quick,
        only=words.only,
        device=torch.device(words.device),
        dtypes=(DTYPES[words.dtype],) if words.dtype else tuple(DTYPES.values()),
        folder=words.folder,
    )
    with Report(options, words.out, has_table=not words.json) as report:
        for name in names:
            for row in BENCHMARKS[name](options):
                report.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())

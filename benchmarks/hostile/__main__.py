"""`python -m benchmarks.hostile [PART...]` from the root of a checkout: every part at full size, a line per figure."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.hostile import files, fuzz, names, numbers, pickles, planted, saves
from benchmarks.hostile.figures import Figure, Scale
from benchmarks.hostile.surroundings import load_pack
from benchmarks.rows import hardware

RESULTS = Path(__file__).parents[1] / "results" / "hostile.jsonl"


def _pickles(scale: Scale) -> Iterator[Figure]:
    base = scale.folder / "comfyui"
    return pickles.run(scale, load_pack(base), base / "models")


def _names(scale: Scale) -> Iterator[Figure]:
    return names.run(scale, load_pack(scale.folder / "comfyui"))


PARTS: Mapping[str, Callable[[Scale], Iterator[Figure]]] = {
    "files": files.run,
    "pickles": _pickles,
    "names": _names,
    "saves": saves.run,
    "numbers": numbers.run,
    "fuzz": fuzz.run,
    "mutation": planted.run,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="of the full size (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="X", help="for each fuzzer (default: 1)")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="fuzzers, saves and mutated modules with this in their names"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="rows are appended here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if every figure is met, 1 if not, 2 for words that make no sense."""
    parser = build_parser()
    try:
        words = parser.parse_args(argv)
    except SystemExit as stop:
        return 2 if stop.code else 0
    unknown = [part for part in words.parts if part not in PARTS]
    if unknown or not 0 < words.share <= 1:
        problem = (
            f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}" if unknown else "--share is not in (0, 1]"
        )
        print(f"hostile: {problem}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # the saves fork, and threads do not survive that
    logging.disable(logging.CRITICAL)  # thousands of files are damaged on purpose
    is_met = True
    for part in words.parts or PARTS:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            scale = Scale(Path(folder).resolve(), words.share, words.seed, words.minutes, words.only)
            for figure in PARTS[part](scale):
                figure.notes["seconds"] = round(time.perf_counter() - begin, 1)
                print(figure.line(), flush=True)
                append(words.out, figure, words.share, words.seed)
                is_met &= figure.is_met
                begin = time.perf_counter()
    return 0 if is_met else 1


def append(path: Path, figure: Figure, share: float, seed: int) -> None:
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    row = {**figure.row(), "share": share, "seed": seed, "date": date, "hardware": hardware()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())

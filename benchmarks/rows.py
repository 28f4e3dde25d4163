"""What a benchmark says: one JSON object a line, and a table for people at the end.

Every row has `benchmark`, `case`, `side` and `kind`. Measured rows (one per side) carry seconds and bytes; computed
rows (side "ratio") carry ours divided by a peer's; predicted rows carry foretold and measured bytes; counted rows
carry what both sides take by their sizes alone; simulated rows carry what a model of a machine says; a side that could
not run says why in `skipped`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

OURS = "hyvideo"
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the command line chose. only: part of the names of the cases to run; folder: for large temporary files;
    minutes: for each table, where tables keep to a time."""

    repeats: int
    is_quick: bool
    only: str
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    folder: Path
    minutes: float = math.inf

    def wants(self, case: str) -> bool:
        return self.only in case


@dataclass(frozen=True)
class Measurement:
    """One side of a case. seconds: every timed round. working_memory: peak bytes above the level before the call."""

    seconds: Sequence[float]
    working_memory: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@cache
def hardware() -> dict[str, Any]:
    """The machine, as far as it decides the numbers."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measured_row(benchmark: str, case: str, side: str, result: Measurement) -> Row:
    """seconds is the median; its spread is the least, the greatest and the distance between the quartiles."""
    seconds = sorted(result.seconds)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {
        "benchmark": benchmark,
        "case": case,
        "side": side,
        "kind": "measured",
        "seconds": statistics.median(seconds),
        "seconds_min": seconds[0],
        "seconds_max": seconds[-1],
        "seconds_iqr": quartiles[2] - quartiles[0],
        "repeats": len(seconds),
        "working_memory_bytes": result.working_memory,
        **result.more,
    }


def ratio_row(benchmark: str, case: str, peer: str, ours: Measurement, theirs: Measurement) -> Row:
    """Ours divided by the peer's: the median over rounds, so that a slow minute of the machine touches both sides."""
    rounds = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    memory = ours.working_memory / theirs.working_memory if ours.working_memory and theirs.working_memory else None
    return {
        "benchmark": benchmark,
        "case": case,
        "side": "ratio",
        "kind": "computed",
        "peer": peer,
        "seconds": statistics.median(rounds),
        "seconds_min": min(rounds),
        "seconds_max": max(rounds),
        "repeats": len(rounds),
        "working_memory": memory,
    }


def skipped_row(benchmark: str, case: str, side: str, reason: str) -> Row:
    return {"benchmark": benchmark, "case": case, "side": side, "kind": "skipped", "skipped": reason}


def simulated_row(benchmark: str, case: str, side: str, seconds: float, stalled: float, moved: int) -> Row:
    """stalled: part of the seconds spent waiting for copies; moved: bytes over the link."""
    return {
        "benchmark": benchmark,
        "case": case,
        "side": side,
        "kind": "simulated",
        "seconds": seconds,
        "stalled_share": stalled,
        "moved_bytes": moved,
    }


def predicted_row(benchmark: str, case: str, predicted: int, measured: int) -> Row:
    """Working memory as it was foretold and as it was, in bytes."""
    return {
        "benchmark": benchmark,
        "case": case,
        "side": OURS,
        "kind": "predicted",
        "predicted_bytes": predicted,
        "working_memory_bytes": measured,
        "working_memory": predicted / measured,
    }


def counted_row(benchmark: str, case: str, peer: str, ours: int, theirs: int) -> Row:
    """Working memory of both sides in bytes, from a run without numbers of each."""
    return {
        "benchmark": benchmark,
        "case": case,
        "side": OURS,
        "kind": "counted",
        "peer": peer,
        "counted_bytes": ours,
        "peer_counted_bytes": theirs,
        "working_memory": ours / theirs,
    }


def compared_rows(benchmark: str, case: str, results: Mapping[str, Measurement], difference: float) -> Iterator[Row]:
    """A row per side, then one ratio per peer. difference: of the sides' outputs, relative to the largest number."""
    for side, result in results.items():
        yield measured_row(benchmark, case, side, result)
    for side, result in results.items():
        if side != OURS:
            yield {**ratio_row(benchmark, case, side, results[OURS], result), "output_difference": difference}


class Report:
    """Writes rows as they come, to stdout and perhaps to a file; the table goes to stderr when all are there."""

    def __init__(self, options: Options, path: Path | None, has_table: bool = True) -> None:
        self._has_table = has_table
        self._common = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": str(options.device),
            "threads": torch.get_num_threads(),
            "quick": options.is_quick,
            "hardware": hardware(),
        }
        self._rows: list[Row] = []
        self._streams: list[TextIO] = [sys.stdout]
        self._file = path.open("a", encoding="utf-8") if path else None
        if self._file:
            self._streams.append(self._file)

    def add(self, row: Row) -> None:
        self._rows.append(row)
        for stream in self._streams:
            stream.write(json.dumps({**row, **self._common}) + "\n")
            stream.flush()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
        if self._has_table:
            sys.stderr.write(table(self._rows))


def table(rows: Sequence[Row]) -> str:
    """The rows for people; ratios are marked with an x, and reasons stand below."""
    lines = [("benchmark", "case", "side", "seconds", "spread", "memory")]
    lines += [(row["benchmark"], row["case"], row["side"], *_numbers(row)) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [f"skipped: {row['case']}, {row['side']}: {row['skipped']}" for row in rows if row["kind"] == "skipped"]
    return "\n".join(text) + "\n"


def _numbers(row: Row) -> tuple[str, str, str]:
    if row["kind"] == "skipped":
        return "skipped", "", ""
    if row["kind"] == "simulated":
        return (
            f"{row['seconds']:.3g}",
            f"{row['stalled_share']:.1%} stalled",
            f"{row['moved_bytes'] / 2**20:.0f} MiB moved",
        )
    if row["kind"] == "counted":
        ours, theirs = (row[name] / 2**20 for name in ("counted_bytes", "peer_counted_bytes"))
        return f"counted {ours:.0f} MiB", f"{row['peer']} {theirs:.0f} MiB", f"x {row['working_memory']:.3f}"
    if row["kind"] == "predicted":
        said, was = (row[name] / 2**20 for name in ("predicted_bytes", "working_memory_bytes"))
        return f"predicted {said:.1f} MiB", f"measured {was:.1f} MiB", f"x {row['working_memory']:.2f}"
    spread = f"{row['seconds_min']:.3g} - {row['seconds_max']:.3g}"
    if row["kind"] == "computed":
        memory = "" if row["working_memory"] is None else f"x {row['working_memory']:.2f}"
        return f"x {row['seconds']:.2f}", spread, memory
    size = row["working_memory_bytes"]
    return f"{row['seconds']:.3g}", spread, "" if size is None else f"{size / 2**20:.0f} MiB"

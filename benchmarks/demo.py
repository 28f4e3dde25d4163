"""The demo from the command to the file: wall time, and the seconds of each stage as the command reports them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import OURS, Measurement, Options, Row, measured_row, skipped_row

ROOT = Path(__file__).resolve().parents[1]
CASE = "command to file"
START = "starting and everything else"


def run(options: Options) -> Iterator[Row]:
    """A row for the whole command, one per stage, and one for what no stage accounts for (Python, imports)."""
    if not options.wants(CASE):
        return
    stages: dict[str, list[float]] = {}
    wall: list[float] = []
    for _ in range(1 if options.is_quick else options.repeats):
        seconds, report = run_demo(options)
        if "error" in report:
            yield skipped_row("demo", CASE, OURS, report["error"]["message"])
            return
        wall.append(seconds)
        spent: dict[str, float] = report["videos"][0]["seconds"]
        for stage, value in {**spent, START: seconds - sum(spent.values())}.items():
            stages.setdefault(stage, []).append(value)
    yield measured_row("demo", CASE, OURS, Measurement(wall))
    for stage, values in stages.items():
        yield measured_row("demo", f"{CASE}: {stage}", OURS, Measurement(values))


def run_demo(options: Options) -> tuple[float, dict[str, Any]]:
    """(wall seconds, the command's report) of one run into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="hyvideo-bench-") as folder:
        command = [sys.executable, "-m", "hyvideo_lib", "demo", "--json", "--device", options.device.type]
        command += ["--out", str(Path(folder) / "demo.mp4")]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
    lines = done.stdout.strip().splitlines()
    if not lines:
        return seconds, {"error": {"message": f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"}}
    report: dict[str, Any] = json.loads(lines[-1])
    return seconds, report

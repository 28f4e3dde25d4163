"""Faults planted in the pure parts, and how many of them the tests notice (benchmarks.mutation)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.hostile.figures import Figure, Scale
from benchmarks.mutation.__main__ import AIM, MODULES, ROOT

FAULTS = 40
"""Of each module at full size, chosen at random."""


def run(scale: Scale) -> Iterator[Figure]:
    """Each module in a process of its own: here the library is imported already, and a fault would come too late."""
    rows = scale.folder / "rows.jsonl"
    for module in MODULES:
        if scale.only not in module:
            continue
        words = [module, "--limit", scale.count(FAULTS), "--seed", scale.seed, "--rows", rows]
        subprocess.run([sys.executable, "-m", "benchmarks.mutation", *map(str, words)], cwd=ROOT, capture_output=True)
        figure = Figure("mutation", f"faults in {module} that its tests notice", least=AIM)
        if rows.exists():
            result = json.loads(rows.read_text())
            rows.unlink()
            figure.wanted, figure.wrong = result["tried"], result["survivors"]
            figure.found = figure.wanted - len(figure.wrong)
        yield figure

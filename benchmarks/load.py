"""A 13 GB fp8 file to a ready model: seconds and anonymous memory, from a cold and from a warm page cache.

Each measurement is a process of its own (`load_child.py`), which imports first and starts the clock then. "Cold" asks
the system to drop the file's pages before. Then one forward of the full-size model, one frame of 256 x 256. Last, a
bf16 file of half the blocks, cast to fp8 in memory and converted to an fp8 file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.random_file import FULL, HALF, QUICK, write_random
from benchmarks.rows import OURS, Measurement, Options, Row, measured_row, ratio_row, skipped_row

PEERS = ("safetensors", "diffusers")
NO_ACCELERATE = "from_single_file needs the package accelerate to load without a float32 copy of the model (51 GB)"
ROOT = Path(__file__).resolve().parents[1]


def run(options: Options) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="hyvideo-bench-", dir=options.folder) as folder:
        path = Path(folder) / "random_fp8.safetensors"
        begin = time.perf_counter()
        size = write_random(path, QUICK if options.is_quick else FULL)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = f"{size / 1e9:.1f} GB fp8"
        spent = Measurement([time.perf_counter() - begin])
        yield measured_row("load", f"{name}, writing the random file", "file system", spent)
        for is_cold in (True, False):
            case = f"{name}, {'cold' if is_cold else 'warm'} page cache"
            if options.wants(case):
                yield from _loads(path, case, is_cold, options)
        case = f"{name}, first forward"
        if options.wants(case):
            yield from _forward(path, case, options)
        path.unlink()
        yield from _casts(Path(folder), options)


def _casts(folder: Path, options: Options) -> Iterator[Row]:
    """A bf16 file on its way to fp8: anonymous memory above the result is what counts."""
    path = folder / "random_bf16.safetensors"
    name = ""
    for side, what in (("cast", "cast to fp8 in memory"), ("convert", "converted to fp8")):
        if not options.wants(f"bf16, {what}"):
            continue
        if not name:
            name = f"{write_random(path, QUICK if options.is_quick else HALF, is_fp8=False) / 1e9:.1f} GB bf16"
        answer = _child(side, path)
        case = f"{name}, {what}"
        if "skipped" in answer:
            yield skipped_row("load", case, OURS, answer["skipped"])
            continue
        more = {key: answer[key] for key in ("above_result_bytes", "block_bytes", "written_bytes") if key in answer}
        yield measured_row("load", case, OURS, Measurement([answer["seconds"]], answer["anonymous_bytes"], more))


def _loads(path: Path, case: str, is_cold: bool, options: Options) -> Iterator[Row]:
    """The sides in turn, `repeats` rounds; a side that cannot run is asked once."""
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in (OURS, *PEERS)}
    skipped = {} if find_spec("accelerate") else {"diffusers": NO_ACCELERATE}
    for _ in range(options.repeats):
        for side in answers:
            if side in skipped:
                continue
            (drop_from_page_cache if is_cold else read_once)(path)
            answer = _child(side, path)
            if "skipped" in answer:
                skipped[side] = answer["skipped"]
            else:
                answers[side].append(answer)
    results = {side: _measurement(found) for side, found in answers.items() if found}
    for side in answers:
        if side in skipped:
            yield skipped_row("load", case, side, skipped[side])
        else:
            yield measured_row("load", case, side, results[side])
    for side in PEERS:
        if OURS in results and side in results:
            yield ratio_row("load", case, side, results[OURS], results[side])


def _forward(path: Path, case: str, options: Options) -> Iterator[Row]:
    answer = _child("forward", path)
    if "skipped" in answer:
        yield skipped_row("load", case, OURS, answer["skipped"])
        return
    more = {"is_finite": answer["is_finite"], "peak_resident_bytes": answer["peak_resident_bytes"]}
    for name, seconds in (("", answer["seconds"]), (", repeated", answer["seconds_again"])):
        result = Measurement([seconds], answer["anonymous_bytes"], more)
        yield measured_row("load", f"{case}{name}, 1 x 256 x 256", OURS, result)


def _measurement(answers: list[dict[str, Any]]) -> Measurement:
    return Measurement([answer["seconds"] for answer in answers], max(answer["anonymous_bytes"] for answer in answers))


def _child(side: str, path: Path) -> dict[str, Any]:
    """What the child process reports."""
    command = [sys.executable, "-m", "benchmarks.load_child", side, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"skipped": f"failed: {last[0]}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def drop_from_page_cache(path: Path) -> None:
    """Ask the system to forget the file's pages; it may keep what others have mapped."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(path: Path) -> None:
    """Bring the file into the page cache, as far as it fits."""
    with path.open("rb", buffering=0) as file:
        block = bytearray(2**24)
        while file.readinto(block):
            pass

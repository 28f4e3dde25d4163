"""Reports of stages: what is measured, what a stage says of itself, and how two of them become one."""

import json
from dataclasses import replace

import pytest
import torch

from hyvideo_lib.errors import OutOfMemory
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.memory import Traffic
from hyvideo_lib.pipeline import Clock, RunReport, StageReport, describe_tiles, measured
from hyvideo_lib.vae import Tiles

CPU = torch.device("cpu")
FULL = StageReport(
    12.34, 3 * 2**30, 5 * 2**30, 2**31, 0.25, "sdpa", 4, 20, "none", ("10 more blocks swapped",), "no compiler"
)


def test_a_stage_is_measured_and_says_the_rest():
    with measured(CPU) as log:
        log.traffic, log.attention, log.swapped_blocks = Traffic(7, None), "sdpa", 3
    report = log.report
    assert report == StageReport(report.seconds, None, report.ram_peak_bytes, 7, None, "sdpa", None, 3, None, ())
    assert report.ram_peak_bytes > 50 * 2**20  # PyTorch alone is larger


def test_a_failed_stage_is_reported_too():
    clock = Clock(HeadlessHost())

    def fail() -> None:
        with clock.stage("decode") as log:
            log.tiles = "none"
            raise MemoryError

    with pytest.raises(OutOfMemory):
        fail()
    assert clock.stages["decode"].tiles == "none"
    assert clock.seconds == {"decode": clock.stages["decode"].seconds}


def test_a_stage_that_is_run_twice_adds_up():
    once = replace(FULL, seconds=1.0, device_peak_bytes=4 * 2**30, swapped_blocks=30, rungs=("a", "b"), skipped_steps=1)
    both = FULL.then(once)
    assert (both.seconds, both.device_peak_bytes, both.ram_peak_bytes) == (13.34, 4 * 2**30, 5 * 2**30)
    assert (both.moved_bytes, both.stalled_seconds, both.skipped_steps) == (2**32, 0.5, 5)
    assert (both.swapped_blocks, both.rungs) == (30, ("10 more blocks swapped", "a", "b"))
    assert FULL.then(replace(FULL, stalled_seconds=None)).stalled_seconds is None
    clock = Clock(HeadlessHost())
    for _ in range(2):
        with clock.stage("sample") as log:
            log.traffic = Traffic(5, 0.5)
    assert (clock.stages["sample"].moved_bytes, clock.stages["sample"].stalled_seconds) == (10, 1.0)


def test_words_hold_what_is_known_and_nothing_else():
    assert FULL.describe() == (
        "12.3 s, GPU peak 3.00 GiB, RAM peak 5.00 GiB, 2.00 GiB moved, stalled 0.2 s, 20 blocks swapped, attention "
        "sdpa, 4 steps skipped, tiles none, not compiled (no compiler), memory ran out, so: 10 more blocks "
        "swapped"
    )
    assert StageReport(1.0).describe() == "1.0 s"
    assert RunReport({"load_text": StageReport(1.0), "decode": StageReport(2.0, tiles="none")}).describe() == (
        "load text: 1.0 s\ndecode: 2.0 s, tiles none"
    )


def test_machines_get_plain_values():
    stages = json.loads(json.dumps(RunReport({"sample": FULL}).to_dict()))["stages"]
    assert stages["sample"]["rungs"] == ["10 more blocks swapped"]
    assert stages["sample"]["moved_bytes"] == 2**31


def test_tiles_in_words():
    assert describe_tiles(None) == "none"
    assert describe_tiles(Tiles(128, 32, 0.5)) == "128 x 128 x 32, overlap 0.5"

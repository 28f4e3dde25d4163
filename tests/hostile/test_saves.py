"""Killed saves and full disks leave no half file. Full size: `python -m benchmarks.hostile saves`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.hostile.figures import Scale
from benchmarks.hostile.save_kinds import SAVES, Save
from benchmarks.hostile.saves import full_disks, kills, what_is_wrong

# Python 3.12 and later warn of every fork of a process that has threads, as PyTorch's has.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("name", [name for name in SAVES if name != "converted pickle"])
def test_a_killed_save_leaves_the_name_absent_as_before_or_complete(scale, met, name):
    figure = kills(name, SAVES[name], scale)
    met(figure)
    assert sum(figure.outcomes.values()) == 2


@pytest.mark.parametrize("name", SAVES)
def test_a_full_disk_is_named_and_leaves_nothing(scale, met, name):
    met(full_disks(name, SAVES[name], scale))


def test_the_check_sees_half_a_file(tmp_path):
    save = SAVES["latents"]
    path = tmp_path / "a.safetensors"
    save.write(path)
    assert what_is_wrong(save, path, None) == (None, "complete")
    path.write_bytes(path.read_bytes()[:-1])
    problem, outcome = what_is_wrong(save, path, None)
    assert outcome == "half"
    assert "FileTruncated" in (problem or "")


def test_a_save_that_writes_in_place_is_found_out(tmp_path):
    """The kills themselves: writing straight to the final name leaves half files."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for _ in range(20):
                file.write(b"x")
                file.flush()
                time.sleep(0.02)

    def check(path: Path) -> None:
        assert path.stat().st_size == 20

    figure = kills("careless", Save(".bin", write, check), Scale(tmp_path, 0.05))
    assert figure.outcomes["half"] > 0
    assert not figure.is_met

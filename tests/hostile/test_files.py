"""Mutated model files end in one of our errors or load whole. Full size: `python -m benchmarks.hostile files`."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from benchmarks.hostile import gguf_files, safetensors_files
from benchmarks.hostile.figures import Figure
from benchmarks.hostile.files import Hang, read_everything, read_wastefully, run_case, run_cases, time_limit
from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.read import read_header
from hyvideo_lib.errors import FileUnreadable

MAKERS = {".safetensors": safetensors_files, ".gguf": gguf_files}
MUTATIONS = [(suffix, name) for suffix, maker in MAKERS.items() for name in maker.MUTATIONS]
HUGE = [(suffix, name) for suffix, maker in MAKERS.items() for name in maker.HUGE]
GOOD = {".safetensors": safetensors_files.good_file, ".gguf": lambda: gguf_files.good_parts().encode()}


@pytest.mark.parametrize("suffix", MAKERS)
def test_the_good_file_loads(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(GOOD[suffix]())
    assert read_everything(path) == "loaded"


@pytest.mark.parametrize(("suffix", "name"), MUTATIONS)
def test_every_mutation_is_refused_or_loads_whole(tmp_path, met, suffix, name):
    rng, good = random.Random(name), GOOD[".safetensors"]() if suffix == ".safetensors" else gguf_files.good_parts()
    cases = ((name, MAKERS[suffix].MUTATIONS[name](rng, good)) for _ in range(25))
    met(run_cases(Figure("files", name), cases, tmp_path, suffix, is_checked_by_package=suffix == ".safetensors"))


@pytest.mark.parametrize(("suffix", "name"), HUGE)
def test_a_huge_header_is_refused_within_seconds_and_little_memory(tmp_path, suffix, name):
    problem, _, _, _ = run_case(tmp_path / f"a{suffix}", MAKERS[suffix].HUGE[name](), read_everything)
    assert problem is None


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_file_cut_at_any_byte_is_refused(tmp_path, suffix):
    path, good = tmp_path / f"a{suffix}", GOOD[suffix]()
    padding = len(good) - len(good.rstrip(b"\0"))  # at a GGUF's end, where nothing is lost
    for end in range(0, len(good) - padding, 3):
        path.write_bytes(good[:end])
        assert read_everything(path) != "loaded", end


@pytest.mark.parametrize("suffix", MAKERS)
def test_the_same_seed_makes_the_same_files(suffix):
    first, second = (list(MAKERS[suffix].cases(3, 120, with_huge=False)) for _ in range(2))
    assert first == second
    assert first != list(MAKERS[suffix].cases(4, 120, with_huge=False))
    assert len(first) == 120


def test_the_check_sees_half_a_file(tmp_path):
    """The runner itself: a reader that forgets a tensor, hangs, or raises something else is found."""
    path, good = tmp_path / "a.safetensors", GOOD[".safetensors"]()

    def forget(path: Path) -> str:
        raise KeyError("weights")

    assert run_case(path, good, forget)[:2] == ("KeyError: 'weights'", "uncaught")
    for data in (good, bytes(2**21)):
        assert "MiB" in (run_case(path, data, read_wastefully)[0] or "")


def test_the_time_limit_stops_what_hangs():
    with pytest.raises(Hang), time_limit(0.1):
        time.sleep(5)


def test_a_name_that_would_steer_a_terminal_is_refused_without_being_shown(tmp_path):
    path = tmp_path / "a.safetensors"
    for name in ("\x1b[2J", "a\nb", "\0", "\u202egnp", "\u2028"):
        entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
        path.write_bytes(safetensors_files.join({name: entry}, b"\0"))
        with pytest.raises(FileUnreadable, match="control characters") as caught:
            read_header(path)
        assert str(caught.value).isprintable()
        assert json.dumps(name).isascii()


def test_a_pipe_is_refused_without_waiting_for_whoever_fills_it(tmp_path):
    pipe = tmp_path / "a.safetensors"
    os.mkfifo(pipe)
    errors = []

    def read() -> None:
        for reader in (read_header, inspect_file):
            try:
                reader(pipe)
            except FileUnreadable as error:
                errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert len(errors) == 2
    assert all("pipe or a device" in error for error in errors)

"""The fuzzers run, and what they found stays found. In earnest: `python -m benchmarks.hostile fuzz --minutes 60`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.hostile import fuzz, gguf_files, safetensors_files
from benchmarks.hostile.figures import Figure
from benchmarks.hostile.files import read_everything

NAMES = ("safetensors header", "GGUF header", "LoRA keys", "mp4 settings")


def test_every_reader_has_a_target(tmp_path):
    assert tuple(fuzz.targets(tmp_path)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_some_examples_raise_nothing_but_our_errors(tmp_path, met, monkeypatch, name):
    monkeypatch.setattr(fuzz, "BATCH", 60)
    figure = Figure("fuzz", name)
    fuzz.fuzz(figure, fuzz.targets(tmp_path)[name], 0.01, first_seed=0)
    met(figure)


def test_a_fault_is_found_and_shrunk(tmp_path):
    def faulty(data: bytes) -> None:
        if len(data) > 3:
            raise IndexError("past the end")

    figure = Figure("fuzz", "faulty")
    fuzz.fuzz(figure, fuzz.Target(fuzz.safetensors_bytes(), faulty), 0.01, first_seed=0)
    assert not figure.is_met
    assert "IndexError: past the end" in figure.wrong[0]


@pytest.mark.parametrize("data", [b"\x80\x02", b"\x80\x04.", b"PK\x03\x04"])
def test_a_pickles_first_bytes_alone(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    assert read_everything(path) != "loaded"


@pytest.mark.parametrize("dims", [(0, 2**32, 2**32), (2**31, 2**56, 0), (2**62, 0, 2**62, 2**62)])
def test_dimensions_that_overflow_beside_one_of_nothing(tmp_path, dims):
    good = gguf_files.good_parts()
    empty = gguf_files.Tensor(gguf_files.text("a"), dims, gguf_files.F32, offset=0)
    entry = {"dtype": "F32", "shape": dims, "data_offsets": [0, 0]}
    for data in (replace(good, tensors=(empty,)).encode(), safetensors_files.join({"a": entry}, b"")):
        path = tmp_path / "a"
        path.write_bytes(data)
        assert read_everything(path) == "file_unreadable"

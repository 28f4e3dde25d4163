"""Pickles that run code are never opened. Full size: `python -m benchmarks.hostile pickles`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.hostile.figures import Figure
from benchmarks.hostile.pickle_files import NAMES, OPCODES, WRAPPINGS, calls, hostile_pickles
from benchmarks.hostile.pickles import (
    check_convert_verb,
    check_inspect_verb,
    check_nodes,
    check_readers,
    control,
    opened_carelessly,
    run_over,
)

COUNT = 40


@pytest.fixture
def canary(tmp_path: Path):
    """The file that any of the pickles would make. None may."""
    path = tmp_path / "canary"
    yield path
    assert not os.path.lexists(path)


@pytest.fixture
def cases(canary: Path):
    return hostile_pickles(1, COUNT, str(canary))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


@pytest.mark.filterwarnings("ignore")
def test_the_pickles_do_run_when_they_are_opened_carelessly(cases, canary, met):
    met(control(cases, canary, enough=COUNT // 4))
    assert not opened_carelessly(b"not a pickle", canary)


def test_the_first_files_hold_every_call_opcode_wrapping_and_name(canary):
    made = hostile_pickles(0, 300, str(canary))
    kinds = {word for case in made for word in case.kind.split(", ")}
    assert kinds >= {*calls(str(canary)), *OPCODES, *WRAPPINGS}
    assert {case.name for case in made} == set(NAMES)


def test_no_reader_of_the_library_opens_one(cases, canary, folder, met):
    met(run_over(Figure("pickles", "readers"), cases, folder, lambda path, case: check_readers(path, canary)))


def test_inspect_describes_them_unopened(cases, canary, folder, met):
    met(run_over(Figure("pickles", "inspect"), cases, folder, lambda path, case: check_inspect_verb(path, canary)))


def test_convert_refuses_them(cases, canary, folder, met):
    met(run_over(Figure("pickles", "convert"), cases[:12], folder, lambda path, case: check_convert_verb(path, canary)))


def test_the_loader_nodes_neither_list_nor_open_one(cases, canary, folder, met, pack, tmp_path):
    import folder_paths

    folder_paths.set_base(tmp_path / "comfyui")
    models = tmp_path / "comfyui" / "models"
    check = lambda path, case: check_nodes(pack, models, case, canary)  # noqa: E731
    met(run_over(Figure("pickles", "nodes"), cases, folder, check))

"""Faults are found, planted and noticed. At length: `python -m benchmarks.mutation`."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutation.__main__ import MODULES, ROOT, planted
from benchmarks.mutation.faults import count_faults, find_faults, plant

SOURCE = '''"""Words."""
from math import pi

__all__ = ["area"]

def area(radius: float, unit: "str" = "cm") -> "float":
    """More words."""
    if radius < 0 or not unit:
        raise ValueError(f"radius is {radius}")
    return pi * radius ** 2
'''
FAULTS = [
    "'cm' -> 'XXcm'",
    "not: radius < 0 or not unit",
    "Or -> And: radius < 0 or not unit",
    "Lt -> LtE: radius < 0",
    "0 -> 1",
    "not: unit",
    "without: raise ValueError(f'radius is {radius}')",
    "return pi * radius ** 2 -> None",
    "Mult -> FloorDiv: pi * radius ** 2",
    "Pow -> Mult: radius ** 2",
    "2 -> 3",
]


def test_every_fault_is_found_and_words_are_left_alone() -> None:
    assert sorted(fault.what for fault in find_faults(ast.parse(SOURCE))) == sorted(FAULTS)


def test_each_fault_makes_another_program_of_the_same_source() -> None:
    programs = {ast.unparse(plant(SOURCE, number)[0]) for number in range(count_faults(SOURCE))}
    assert len(programs) == len(FAULTS)
    assert ast.unparse(ast.parse(SOURCE)) not in programs
    for number in range(count_faults(SOURCE)):
        compile(plant(SOURCE, number)[0], "planted", "exec")


def test_a_planted_fault_is_what_an_import_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "planted_area.py"
    path.write_text("answer = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with planted(path.resolve(), ast.parse("answer = 2")):
        import planted_area  # type: ignore[import-not-found]

    assert planted_area.answer == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tests run in forks")
def test_tests_notice_faults_and_what_they_miss_is_reported(tmp_path: Path) -> None:
    """In a process of its own: here the library is imported already."""
    report = tmp_path / "report.md"
    words = ["-m", "benchmarks.mutation", "geometry", "--limit", "4", "--seed", "1", "--out", str(report)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "geometry: 4 of 4 noticed (100.0 %)" in report.read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tests run in forks")
def test_tests_that_notice_nothing_are_found_out(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("import hyvideo_lib.geometry\ndef test_nothing(): pass\n")
    program = (
        "import sys, benchmarks.mutation.__main__ as m\n"
        "words = m.build_parser().parse_args(['geometry', '--faults', '7', '0', '99999'])\n"
        f"result = m.mutate('geometry', [{str(tmp_path / 'test_nothing.py')!r}], words)\n"
        "assert [line.split(',')[0] for line in result.survivors] == ['7', '0'], result.survivors\n"
        "sys.exit(10 + result.killed)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=600).returncode == 10


def test_the_tests_of_every_module_are_there() -> None:
    for module, tests in MODULES.items():
        assert (ROOT / "hyvideo_lib" / f"{module}.py").is_file()
        assert all((ROOT / test).is_file() for test in tests)

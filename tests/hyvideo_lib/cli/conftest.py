"""Running the command line in this process and in another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hyvideo_lib.cli import main

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Answer:
    """What a command with --json gave back. `report` is all that stood on stdout."""

    code: int
    report: dict[str, Any]
    stderr: str

    @property
    def error(self) -> str | None:
        return self.report.get("error", {}).get("code")

    @property
    def message(self) -> str:
        return self.report["error"]["message"]


@pytest.fixture
def hyvideo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """hyvideo(*words) -> Answer, in an empty current folder."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words: object) -> Answer:
        code = main([*map(str, words), "--json"])
        captured = capsys.readouterr()
        return Answer(code, json.loads(captured.out), captured.err)

    return run


@pytest.fixture
def generate(hyvideo: Callable[..., Answer], tiny_files):
    """hyvideo generate with the tiny model, small and quick; what is given comes last, and so wins."""
    small = ["--width", 32, "--height", 32, "--frames", 5, "--steps", 2, "--seed", 7]
    return lambda *words: hyvideo("generate", *tiny_files.arguments(), *small, *words)


@pytest.fixture
def start_process(tmp_path: Path):
    """start_process(words, before) -> a process that runs `before` and then the command line."""
    processes: list[subprocess.Popen[str]] = []

    def start(words: list[object], before: str = "pass") -> subprocess.Popen[str]:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {before}; "
        code += "from hyvideo_lib.cli import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()

"""The stand-in for ComfyUI is held to a real one, where there is one.

COMFYUI_PATH is its folder, COMFYUI_PYTHON the Python that runs it (this one by default).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SECONDS = 300


def ask(python: str, path: str, folder: Path) -> dict:
    """What a ComfyUI offers and answers, in a process of its own."""
    command = [python, str(TESTS / "host_probe.py"), path, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict]:
    """(stand-in, real)."""
    real = os.environ.get("COMFYUI_PATH")
    if not real:
        pytest.skip("set COMFYUI_PATH (and COMFYUI_PYTHON) to compare the stand-in with a real ComfyUI")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    folders = [tmp_path_factory.mktemp(name) for name in ("standin", "real")]
    return ask(sys.executable, str(TESTS / "standin"), folders[0]), ask(python, real, folders[1])


def test_the_real_one_takes_every_call_that_the_standin_takes(both):
    """The same names in the same places, and nothing more that must be given."""
    ours, real = (answers["calls"] for answers in both)
    wrong = {}
    for call, parameters in ours.items():
        known = {name: kind for name, kind, _ in real[call]}
        if "VAR_KEYWORD" in known.values():
            continue
        by_name = [name for name, kind, _ in parameters if kind != "VAR_POSITIONAL"]
        order = [name for name, kind, _ in parameters if kind == "POSITIONAL_OR_KEYWORD"]
        needed = {name for name, kind, has_default in real[call] if not has_default and not kind.startswith("VAR")}
        unknown = [name for name in by_name if name not in known]
        if unknown or order != list(known)[: len(order)] or needed - set(by_name):
            wrong[call] = {"unknown": unknown, "order": order, "real": list(known), "needed": sorted(needed)}
    assert wrong == {}


@pytest.mark.parametrize("part", ["sockets", "nodes", "memory", "interruption", "progress", "folders", "previews"])
def test_the_real_one_gives_the_same_answers(both, part):
    ours, real = (answers["answers"][part] for answers in both)
    assert ours == real

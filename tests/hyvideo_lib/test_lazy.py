"""Packages whose modules are imported when something of them is asked for."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hyvideo_lib"
LAZY = ["transformer", "vae", "text", "memory", "checkpoint", "lora", "pipeline"]


@pytest.mark.parametrize("name", LAZY)
def test_everything_that_is_listed_is_there(name):
    package = importlib.import_module(f"hyvideo_lib.{name}")
    for entry in package.__all__:
        assert getattr(package, entry) is getattr(package, entry)


@pytest.mark.parametrize("name", LAZY)
def test_types_and_names_come_from_the_same_modules(name):
    """What type checkers read and what is imported are two lists of the same."""
    tree = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
    (choice,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {node.module: " ".join(alias.name for alias in node.names) for node in choice.body}
    (assignment,) = choice.orelse
    named = ast.literal_eval(assignment.value.args[1])
    assert named == typed
    listed = importlib.import_module(f"hyvideo_lib.{name}").__all__
    assert sorted(" ".join(typed.values()).split()) == sorted(listed)


@pytest.mark.parametrize("name", LAZY)
def test_no_name_is_also_a_modules(name):
    """An imported module would stand in the place of the thing."""
    modules = {file.stem for file in (PACKAGE / name).glob("*.py")}
    assert not modules & set(importlib.import_module(f"hyvideo_lib.{name}").__all__)


def test_a_name_that_is_not_there_is_told_as_usual():
    package = importlib.import_module("hyvideo_lib.vae")
    with pytest.raises(AttributeError, match=r"module 'hyvideo_lib\.vae' has no attribute 'Nonsense'"):
        package.Nonsense  # noqa: B018 (asking is the test)
    with pytest.raises(ImportError):
        importlib.import_module("hyvideo_lib.vae.nonsense")


def test_asking_for_one_thing_leaves_the_rest_alone():
    code = (
        "import sys\nfrom hyvideo_lib.pipeline import DTYPES\n"
        "assert not [name for name in sys.modules if name.startswith(('hyvideo_lib.checkpoint', 'hyvideo_lib.lora'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)

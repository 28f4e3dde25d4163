"""The generators of `benchmarks/hostile`, in a folder of the test's own; a share of the full size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.hostile.figures import Figure, Scale

if not hasattr(os, "fork"):  # nor are there alarms and limits there, which all of it needs
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def scale(tmp_path: Path) -> Scale:
    return Scale(tmp_path.resolve(), share=0.02, seed=1)


def assert_met(figure: Figure) -> None:
    assert figure.is_met, figure.line()


@pytest.fixture
def met():
    """A figure is met, or the test fails with its line."""
    return assert_met

"""Extras that messages, help and README name: each can be installed, and installs what the message is about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hyvideo_lib.attention import BACKENDS

ROOT = Path(__file__).parents[1]
TEXTS = [
    *(path for folder in ("hyvideo_lib", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))),
    *sorted((ROOT / "web").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
]
NAMED = re.compile(r"(?:hyvideo|\"\.|'\.|\s\.)\[([a-z]+)\]")


def extras() -> dict[str, list[str]]:
    try:
        import tomllib
    except ImportError:
        tomllib = pytest.importorskip("tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def named_in(text: str) -> set[str]:
    return set(NAMED.findall(text))


def test_every_extra_that_is_named_exists() -> None:
    named = {(path.name, extra) for path in TEXTS for extra in named_in(path.read_text("utf-8"))}
    named |= {(backend.name, extra) for backend in BACKENDS.values() for extra in named_in(backend.install)}
    assert {extra for _, extra in named} >= {"flash", "sage", "standalone"}
    assert {pair for pair in named if pair[1] not in extras()} == set()


@pytest.mark.parametrize(
    ("name", "extra", "package"), [("flash_attn_2", "flash", "flash-attn"), ("sage", "sage", "sageattention")]
)
def test_a_backends_advice_names_its_package_and_its_extra(name: str, extra: str, package: str) -> None:
    advice = BACKENDS[name].install
    assert re.search(rf"pip install [^(]*{package}", advice)
    assert named_in(advice) == {extra}
    assert "ComfyUI" in advice
    assert any(re.match(rf"{package}\b", requirement) for requirement in extras()[extra])

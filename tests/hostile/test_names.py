"""Names that lead elsewhere lead nowhere. Full size: `python -m benchmarks.hostile names`."""

from __future__ import annotations

import pytest

from benchmarks.hostile.figures import Scale
from benchmarks.hostile.names import Ground, Listener, hostile_names, run


def test_nothing_is_read_or_written_outside(pack, tmp_path, met):
    contained, untouched, _ = run(Scale(tmp_path.resolve(), share=0.03, seed=2), pack)
    met(contained)
    met(untouched)


def test_every_name_ends_in_a_sentence(pack, tmp_path, met):
    _, _, refused = run(Scale(tmp_path.resolve(), share=0.03, seed=2), pack)
    met(refused)


@pytest.fixture
def ground(pack, tmp_path):
    made = Ground(tmp_path.resolve() / "ground")
    made.build(pack)
    return made


def test_the_listener_hears_what_is_forbidden(ground):
    listener = Listener(ground)
    with listener:
        (ground.comfyui / "output" / "fine").write_text("x")
        (ground.comfyui / "models" / "vae" / "vae.safetensors").read_bytes()
    assert listener.violations == []
    with listener:
        (ground.secret / "vae.safetensors").read_bytes()
    assert len(listener.violations) == 1
    with listener:
        (ground.comfyui / "models" / "new").mkdir()
        (ground.comfyui / "input" / "new").write_text("x")
    assert len(listener.violations) == 2


def test_the_snapshot_sees_a_changed_file(ground):
    before = ground.snapshot()
    (ground.comfyui / "output" / "fine").write_text("x")
    assert ground.snapshot() == before
    (ground.secret / "tokenizer.json").write_text("[]")
    assert ground.snapshot() != before


def test_the_names_hold_every_kind_of_trick(ground):
    names = hostile_names(0, 2000, ground)
    assert len(names) == 2000
    for trick in ("..", "\0", "\\\\server", "C:", "NUL", "loop", "file://", "\ud800", str(ground.secret)):
        assert any(trick in name for name in names), trick
    assert max(map(len, names)) >= 4096

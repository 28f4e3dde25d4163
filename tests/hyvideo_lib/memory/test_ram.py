"""Free RAM, by the library that knows it and by the system's own word."""

import sys

import pytest

from hyvideo_lib.memory import ram


def test_the_system_says_how_much_is_free(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psutil", None)  # as if it were not installed
    monkeypatch.setattr(ram, "MEMINFO", tmp_path / "meminfo")
    assert ram.free_ram_bytes() is None
    ram.MEMINFO.write_text("MemTotal: 100 kB\nMemAvailable:    24 kB\n")
    assert ram.free_ram_bytes() == 24 * 1024


def test_psutil_is_asked_where_it_is():
    psutil = pytest.importorskip("psutil")
    assert ram.free_ram_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.5)

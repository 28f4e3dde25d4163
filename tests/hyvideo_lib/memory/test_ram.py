"""Free RAM, by the library that knows it and by the system's own word."""

import sys
from types import SimpleNamespace

import pytest

from hyvideo_lib.memory import ram


def test_the_system_says_how_much_is_free(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psutil", None)  # as if it were not installed
    monkeypatch.setattr(ram, "MEMINFO", tmp_path / "meminfo")
    assert ram.free_ram_bytes() is None
    assert ram.free_swap_bytes() == 0
    ram.MEMINFO.write_text("MemTotal: 100 kB\nMemAvailable:    24 kB\nSwapFree: 7 kB\n")
    assert ram.free_ram_bytes() == 24 * 1024
    assert ram.free_swap_bytes() == 7 * 1024


def test_a_system_that_will_not_tell_of_its_swap_has_none(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("PdhAddEnglishCounterW failed. Performance counters may be disabled.")

    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(swap_memory=fail))
    monkeypatch.setattr(ram, "MEMINFO", tmp_path / "meminfo")
    assert ram.free_swap_bytes() == 0


def test_a_container_with_less_memory_than_its_machine_is_believed(monkeypatch, tmp_path):
    monkeypatch.setattr(ram, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(ram, "GROUPS", tmp_path)
    monkeypatch.setattr(ram, "_system_free", lambda: 10**6)
    ram.OWN_GROUP.write_text("1:name=systemd:/x\n0::/outer/inner\n")
    assert ram.free_ram_bytes() == 10**6
    for group, limit, used in (("outer", "5000", 4100), ("outer/inner", "max", 4000)):
        (tmp_path / group).mkdir()
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.current").write_text(f"{used}\n")
        (tmp_path / group / "memory.stat").write_text("anon 100\nactive_file 30\ninactive_file 70\n")
    assert ram.free_ram_bytes() == 5000 - 4100 + 100
    (tmp_path / "outer/inner/memory.max").write_text("4001\n")
    assert ram.free_ram_bytes() == 101


def test_psutil_is_asked_where_it_is():
    psutil = pytest.importorskip("psutil")
    assert ram.free_ram_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.5)

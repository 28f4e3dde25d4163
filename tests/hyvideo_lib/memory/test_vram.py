"""What a device says of its memory, where there is none and where nobody has used it yet."""

import platform
import sys
from types import SimpleNamespace

import pytest
import torch

from hyvideo_lib.memory import vram
from hyvideo_lib.memory.vram import (
    SpillWatch,
    device_peak_bytes,
    free_device_bytes,
    give_back,
    reset_device_peak,
    stay_on_card,
)


def test_a_cpu_counts_nothing():
    cpu = torch.device("cpu")
    reset_device_peak(cpu)
    give_back(cpu)
    assert (free_device_bytes(cpu), device_peak_bytes(cpu)) == (None, None)


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a card is in use already")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "xpu:0"])
def test_a_card_that_nobody_has_used_yet_can_be_measured(name):
    """The first thing a run does is to measure its first stage, before anything is on the card."""
    device = torch.device(name)
    reset_device_peak(device)
    give_back(device)
    assert device_peak_bytes(device) == 0


class Card:
    """As much of a device module as is asked for its memory."""

    def __init__(self, free: int | None, total: int, reserved: int, allocated: int) -> None:
        self.free, self.total, self.reserved, self.allocated = free, total, reserved, allocated
        self.fractions: list[float] = []

    def mem_get_info(self, device):
        if self.free is None:
            raise RuntimeError("The device doesn't support querying the available free memory.")
        return self.free, self.total

    def memory_reserved(self, device):
        return self.reserved

    def memory_allocated(self, device):
        return self.allocated

    def get_device_properties(self, device):
        return SimpleNamespace(total_memory=self.total)

    def set_per_process_memory_fraction(self, fraction, device):
        self.fractions.append(fraction)


def has(monkeypatch, card):
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    for name in ("mem_get_info", "memory_reserved", "memory_allocated", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, getattr(card, name))


def test_what_pytorch_keeps_unused_is_free(monkeypatch):
    has(monkeypatch, Card(free=500, total=1000, reserved=300, allocated=200))
    assert free_device_bytes(torch.device("cuda")) == 600


def test_a_card_that_does_not_tell_is_taken_to_be_ours(monkeypatch):
    """As some of Intel's."""
    has(monkeypatch, Card(free=None, total=1000, reserved=300, allocated=200))
    assert free_device_bytes(torch.device("xpu")) == 800


@pytest.mark.parametrize(
    ("system", "release", "expected"),
    [
        ("win32", "10", [0.8]),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", [0.8]),
        ("linux", "6.8.0-generic", []),
    ],
)
def test_where_the_driver_would_use_ram_instead_what_is_not_free_cannot_be_had(monkeypatch, system, release, expected):
    card = Card(free=500, total=1000, reserved=300, allocated=200)
    has(monkeypatch, card)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    vram._spills.cache_clear()
    stay_on_card(torch.device("cuda"))
    stay_on_card(torch.device("cpu"))
    monkeypatch.undo()
    vram._spills.cache_clear()
    assert card.fractions == expected


@pytest.mark.parametrize(("system", "seen"), [("win32", 300), ("linux", 0)])
def test_what_the_driver_put_into_ram_is_seen(monkeypatch, system, seen):
    card = Card(free=200, total=1000, reserved=700, allocated=600)  # 100 are other programs'
    has(monkeypatch, card)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-generic")
    vram._spills.cache_clear()
    watch, none = SpillWatch(torch.device("cuda")), SpillWatch(torch.device("cpu"))
    vram._spills.cache_clear()
    assert (watch.num_bytes, none.num_bytes) == (0, 0)
    card.free, card.reserved = 0, 1200
    assert (watch.num_bytes, none.num_bytes) == (seen, 0)

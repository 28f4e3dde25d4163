"""The device on which calls act that do not look at their tensors."""

import pytest
import torch

from hyvideo_lib.device import on_device
from hyvideo_lib.memory import copy_engine
from hyvideo_lib.memory.copy_engine import HostBlock, StreamCopyEngine


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_there_is_nothing_to_do_where_there_is_but_one(name):
    with on_device(torch.device(name)) as entered:
        assert entered is None


def test_a_card_is_the_current_one_meanwhile(monkeypatch):
    current = [0]

    def exchange(index):
        current[0], before = index, current[0]
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    with on_device(torch.device("cuda:1")):
        assert current == [1]
    assert current == [0]


@pytest.mark.parametrize("is_carried", [True, False], ids=["by the thread", "from pinned memory"])
def test_blocks_are_copied_with_their_device_as_the_current_one(monkeypatch, is_carried):
    entered, cpu = [], torch.device("cpu")
    monkeypatch.setattr(copy_engine, "on_device", lambda device: entered.append(device) or on_device(device))
    block = HostBlock([torch.arange(8.0)])
    engine = StreamCopyEngine({0: block}, 1, cpu)
    if not is_carried:
        block.pinned = torch.zeros(32, dtype=torch.uint8)
    engine.start(0, 0)
    engine.finish(0)
    engine.close()
    assert entered == [cpu] * (2 if is_carried else 1)

from __future__ import annotations

import inspect
import signal
import threading

import pytest
import torch

from hyvideo_lib.errors import Interrupted
from hyvideo_lib.host import HeadlessHost, Host

METHODS = [name for name, _ in inspect.getmembers(Host, inspect.isfunction) if not name.startswith("_")]


def test_headless_host_says_nothing_and_goes_on_by_default() -> None:
    host = HeadlessHost()
    host.stage("denoise", 3)
    host.step(1, 3)
    host.preview(torch.zeros(1))
    host.check_interrupt()
    host.request_memory(1 << 60)
    assert host.device == torch.device("cpu")


def test_headless_host_passes_on_what_it_is_told() -> None:
    heard: list[tuple] = []
    latents = torch.zeros(1, 4, 1, 2, 2)
    host = HeadlessHost(
        "meta",
        on_stage=lambda name, total: heard.append(("stage", name, total)),
        on_step=lambda done, total: heard.append(("step", done, total)),
        on_preview=lambda shown: heard.append(("preview", shown)),
    )
    host.stage("decode", 2)
    host.step(1, 2)
    host.preview(latents)
    assert heard[:2] == [("stage", "decode", 2), ("step", 1, 2)]
    assert heard[2][1] is latents
    assert host.device == torch.device("meta")


def test_cancelling_makes_every_later_check_raise() -> None:
    host = HeadlessHost()
    host.check_interrupt()
    host.cancel()
    for _ in range(2):
        with pytest.raises(Interrupted):
            host.check_interrupt()


def test_cancelling_works_from_another_thread() -> None:
    host = HeadlessHost()
    thread = threading.Thread(target=host.cancel)
    thread.start()
    thread.join()
    with pytest.raises(Interrupted):
        host.check_interrupt()


def test_cancelling_works_from_a_signal_handler() -> None:
    host = HeadlessHost()
    before = signal.signal(signal.SIGINT, lambda *_: host.cancel())
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(Interrupted):
        host.check_interrupt()


def test_one_cancelled_host_leaves_the_others_alone() -> None:
    HeadlessHost().cancel()
    HeadlessHost().check_interrupt()


@pytest.mark.parametrize("name", METHODS)
def test_headless_host_has_every_method_of_the_seam_with_its_parameters(name: str) -> None:
    wanted, found = (inspect.signature(getattr(kind, name)) for kind in (Host, HeadlessHost))
    assert list(found.parameters) == list(wanted.parameters)


def test_the_seam_is_these_calls() -> None:
    assert sorted(METHODS) == ["check_interrupt", "preview", "request_memory", "stage", "step"]
    assert isinstance(Host.device, property)

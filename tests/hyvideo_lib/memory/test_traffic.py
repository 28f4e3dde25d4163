"""Waits on a device that can time them, played by a clock."""

import pytest
import torch

from hyvideo_lib.memory.traffic import StallWatch, Traffic

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class FakeDevice:
    """A device module of PyTorch whose stream reaches everything at once, at the time that `now` says (ms)."""

    now = 0.0
    waited_for = 0

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.device, self.time = stream, stream.now

        def query(self):
            return self.device.now > self.time

        def synchronize(self):
            self.device.waited_for += 1

        def elapsed_time(self, later):
            return later.time - self.time

    def current_stream(self, device):
        assert device == CUDA
        return self


def test_waits_add_up_and_only_asking_waits_for_the_device():
    api = FakeDevice()
    watch = StallWatch(api, CUDA)
    for wait in (250.0, 0.0, 1500.0):
        watch.begin()
        api.now += wait
        watch.end()
        api.now += 1000.0  # computing is no wait
    assert api.waited_for == 0
    assert watch.seconds == 1.75
    assert watch.seconds == 1.75
    assert api.waited_for == 1  # the rest had been counted on the way


def test_a_device_without_timed_events_does_not_guess():
    watch = StallWatch(torch.get_device_module(CPU), CPU)
    watch.begin()
    watch.end()
    assert watch.seconds is None


@pytest.mark.parametrize(
    ("one", "other", "total"),
    [
        (Traffic(3, 1.5), Traffic(4, 0.5), Traffic(7, 2.0)),
        (Traffic(3, None), Traffic(4, 0.5), Traffic(7, None)),
        (Traffic(3, 1.0), Traffic(4, None), Traffic(7, None)),
    ],
)
def test_what_is_unknown_stays_unknown(one, other, total):
    assert one + other == total
    if total.stalled_seconds is not None:
        assert total - other == one

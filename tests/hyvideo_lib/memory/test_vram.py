"""What a device says of its memory, where there is none and where nobody has used it yet."""

import pytest
import torch

from hyvideo_lib.memory.vram import device_peak_bytes, free_device_bytes, give_back, reset_device_peak


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

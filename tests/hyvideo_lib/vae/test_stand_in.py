"""What tensors without numbers stand for, and that windows left out change nothing that is counted."""

import torch

from hyvideo_lib.vae.stand_in import device_type, meta_stands_for
from hyvideo_lib.vae.sweep import CPU_ELEMENTS, GPU_ELEMENTS, frames_at_once, windows


def test_only_tensors_without_numbers_stand_for_another_device():
    meta, real = torch.empty(1, device="meta"), torch.empty(1)
    assert device_type(meta) == "meta"
    with meta_stands_for("cpu"):
        assert (device_type(meta), device_type(real)) == ("cpu", "cpu")
    with meta_stands_for("cuda"):
        assert (device_type(meta), device_type(real)) == ("cuda", "cpu")
    assert device_type(meta) == "meta"


def test_pieces_are_as_large_as_on_the_device_that_is_stood_for():
    frames = torch.empty(4, 1, 1024, 1024, device="meta")
    for kind, elements in (("cpu", CPU_ELEMENTS), ("cuda", GPU_ELEMENTS)):
        with meta_stands_for(kind):
            assert frames_at_once(frames) == elements // 2**20


def test_without_numbers_windows_in_the_middle_are_left_out():
    sizes = {}
    for device in ("cpu", "meta"):
        frames = torch.empty(24, 1, 1024, 1024, device=device).to(memory_format=torch.channels_last)
        with meta_stands_for("cpu"):
            sizes[device] = [(start, len(window)) for start, window in windows(frames, 2, (1, 1, 1, 1))]
    assert sizes["cpu"] == [(0, 1), *((start, 6) for start in range(1, 20, 4)), (21, 5)]
    assert sizes["meta"] == [(0, 1), (1, 6), (5, 6), (21, 5)]

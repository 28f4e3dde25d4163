from __future__ import annotations

import torch

from hyvideo_lib.video import frames_from_pixels, pixels_from_frames


def test_pixels_are_cut_off_not_rounded_and_clamped():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0, 2 * 10.9 / 255 - 1]).view(1, -1, 1, 1).expand(3, -1, 1, 1)
    assert frames_from_pixels(pixels)[:, 0, 0].tolist() == [[n] * 3 for n in (0, 0, 127, 254, 255, 255, 10)]


def test_axes_end_up_as_files_have_them():
    pixels = torch.full((3, 40, 2, 4), -1.0)
    pixels[2, 37, 1, 3] = 1.0
    frames = frames_from_pixels(pixels)
    assert frames.shape == (40, 2, 4, 3)
    assert frames.nonzero().tolist() == [[37, 1, 3, 2]]


def test_bytes_survive_the_way_there_and_back():
    frames = torch.arange(256, dtype=torch.uint8).view(4, 8, 8, 1).expand(-1, -1, -1, 3)
    pixels = pixels_from_frames(frames)
    assert pixels.shape == (3, 4, 8, 8)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    difference = frames_from_pixels(pixels).int() - frames.int()
    assert difference.abs().max() <= 1  # cutting off after a float32 rounding


def test_half_precision_is_widened_first():
    pixels = torch.linspace(-1, 1, 256).view(1, 1, 16, 16).expand(3, -1, -1, -1).bfloat16()
    assert torch.equal(frames_from_pixels(pixels), frames_from_pixels(pixels.float()))

from __future__ import annotations

import logging

import pytest
import torch

from hyvideo_lib.video import FlatWatch

SIZE = (5, 16, 24, 3)


def one_colour(*colour: int) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(SIZE).clone()


def find_flat(*parts: torch.Tensor) -> str | None:
    """What is said of a video that comes in these parts."""
    watch = FlatWatch()
    for part in parts:
        watch.look(part)
    return watch.find()


def of_kind(frames: torch.Tensor, kind: str) -> torch.Tensor:
    """The same frames as files have them, and as ComfyUI has them."""
    return frames if kind == "bytes" else frames.float() / 255


@pytest.mark.parametrize("kind", ["bytes", "floats"])
@pytest.mark.parametrize(
    ("colour", "word"),
    [((0, 0, 0), "black"), ((8, 7, 8), "black"), ((200, 10, 30), "of one colour"), ((9, 0, 0), "of")],
)
def test_a_video_of_nothing_is_named(colour, word, kind):
    assert f"All 5 frames are {word}" in (find_flat(of_kind(one_colour(*colour), kind)) or "")


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_frames_that_are_each_of_another_colour_show_nothing_either(kind):
    frames = torch.arange(5, dtype=torch.uint8).mul(50)[:, None, None, None].expand(SIZE).clone()
    assert find_flat(of_kind(frames, kind)) is not None


@pytest.mark.parametrize("kind", ["bytes", "floats"])
@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize(("step", "is_flat"), [(2, True), (3, False)])
def test_one_pixel_of_one_frame_decides(step, is_flat, channel, kind):
    frames = one_colour(100, 100, 100)
    frames[3, 15, 23, channel] += step
    assert (find_flat(of_kind(frames, kind)) is not None) == is_flat


def test_no_frames_are_no_flat_video():
    assert find_flat(torch.zeros(0, 4, 4, 3)) is None


@pytest.mark.parametrize("at", [0, 1, 4, 5])
def test_a_video_in_parts_is_judged_as_a_whole(at):
    black, noisy = one_colour(0, 0, 0), one_colour(0, 0, 0)
    noisy[4, 0, 0, 0] = 99
    assert find_flat(black[:at], black[at:]) == find_flat(black)
    assert find_flat(noisy[:at], noisy[at:]) is None


def test_the_warning_is_logged_where_there_is_one(caplog):
    with caplog.at_level(logging.WARNING):
        for frames in (one_colour(0, 0, 0), torch.randint(0, 255, SIZE, dtype=torch.uint8)):
            watch = FlatWatch()
            watch.look(frames)
            watch.warn()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "black" in caplog.text

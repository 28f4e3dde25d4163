from __future__ import annotations

import pytest
import torch

from hyvideo_lib.errors import FileMissing, FileUnreadable
from hyvideo_lib.video import probe_size, read_frames, write_video


@pytest.fixture
def video(tmp_path):
    """Ten frames a second apart in grey, 96 x 48, left half black."""
    frames = [torch.full((48, 96, 3), 20 * index, dtype=torch.uint8) for index in range(10)]
    for frame in frames:
        frame[:, :48] = 0
    write_video(tmp_path / "a.mp4", frames, 96, 48, 8, {"hyvideo": "1"})
    return tmp_path / "a.mp4"


def test_the_size_is_found(video):
    assert probe_size(video) == (96, 48)


def test_a_wide_video_is_cropped_around_its_middle(video):
    found = read_frames(video, 48, 48, 10, 8)
    assert found.shape == (10, 48, 48, 3)
    assert found[9, :, :20].max() < 16
    assert found[9, :, 28:].min() > 160


def test_a_small_video_is_scaled_to_cover(video):
    assert read_frames(video, 64, 64, 1, 8).shape == (1, 64, 64, 3)


def test_at_most_so_many_frames_are_taken(video):
    assert len(read_frames(video, 96, 48, 4, 8)) == 4
    assert len(read_frames(video, 96, 48, 99, 8)) == 10


def test_motion_keeps_its_speed_at_another_rate(video):
    slow, fast = read_frames(video, 96, 48, 99, 4), read_frames(video, 96, 48, 99, 16)
    assert (len(slow), len(fast)) == (5, 20)
    assert torch.equal(fast[0::2], read_frames(video, 96, 48, 99, 8))


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    for path, error in (
        (tmp_path / "a.mp4", FileUnreadable),
        (tmp_path / "b.mp4", FileMissing),
        (tmp_path, FileMissing),
    ):
        with pytest.raises(error):
            probe_size(path)
        with pytest.raises(error):
            read_frames(path, 16, 16, 1, 8)

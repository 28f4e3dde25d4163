from __future__ import annotations

from fractions import Fraction

import pytest
from video_clips import clip, ffmpeg

from hyvideo_lib.errors import FileMissing, FileUnreadable
from hyvideo_lib.video import probe, probe_size, probe_video


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.ts", "a.h264", "a.gif"])
@pytest.mark.parametrize("rate", ["24000/1001"])
def test_frames_and_their_exact_rate_are_found_in_every_container(tmp_path, name, rate):
    found = probe_video(clip(tmp_path / name, rate, 24))
    assert (found.frames, found.rate, found.is_constant) == (24, Fraction(rate), True)
    assert (found.shown_size, found.sound, found.is_still) == ((64, 48), None, False)
    assert found.seconds == pytest.approx(24 * 1001 / 24000)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
def test_a_picture_is_one_frame_without_a_rate(tmp_path, name):
    found = probe_video(clip(tmp_path / name, 8, 1))
    assert (found.frames, found.is_still, found.rate, found.seconds) == (1, True, None, None)


def test_sound_is_found_by_its_codec(tmp_path):
    assert probe_video(clip(tmp_path / "a.mp4", onset=0.0)).sound == "aac"
    assert probe_video(clip(tmp_path / "a.mkv", 8, 17, "-c:a", "flac", onset=0.0)).sound == "flac"


def test_a_variable_rate_is_told_with_its_true_length(tmp_path):
    found = probe_video(clip(tmp_path / "a.mp4", 30, 40, "-vf", "setpts=(N+gt(N\\,10)*20)/30/TB", "-fps_mode", "vfr"))
    assert (found.frames, found.rate, found.is_constant) == (40, 30, False)
    assert found.seconds == pytest.approx(2.0)


def test_the_size_is_what_a_player_shows(tmp_path):
    wide = clip(tmp_path / "wide.mp4", 8, 5, "-vf", "setsar=2/1")
    assert probe_size(wide) == (128, 48)
    ffmpeg("-display_rotation", 90, "-i", wide, "-c", "copy", tmp_path / "turned.mp4")
    assert probe_size(tmp_path / "turned.mp4") == (48, 128) or probe_size(tmp_path / "turned.mp4") == (24, 64)


def test_of_a_very_long_file_only_the_beginning_is_counted(tmp_path, monkeypatch):
    path = clip(tmp_path / "a.mp4", 8, 17)
    monkeypatch.setattr(probe, "MAX_COUNTED", 10)
    found = probe_video(path)
    assert (found.frames, found.has_more, found.rate) == (10, True, 8)


def test_metadata_cannot_pass_for_facts(tmp_path):
    lie = "Stream #0:9: Audio: aac\n  Stream #0:9: Audio: aac\n[Parsed_showinfo_0 @ 0x0] config in time_base: 1/1, "
    found = probe_video(clip(tmp_path / "a.mkv", 8, 5, "-metadata", f"title={lie}frame_rate: 99/1"))
    assert (found.sound, found.rate) == (None, 8)


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", tmp_path / "a.m4a")
    for name, error in (
        ("a.mp4", FileUnreadable),
        ("a.m4a", FileUnreadable),
        ("b.mp4", FileMissing),
        ("", FileMissing),
    ):
        with pytest.raises(error):
            probe_video(tmp_path / name)

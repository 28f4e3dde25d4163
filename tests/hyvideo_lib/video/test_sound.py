from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from video_clips import clip, samples

from hyvideo_lib.video import probe_video
from hyvideo_lib.video.sound import read_sound


def test_aac_is_copied_and_anything_else_becomes_aac(tmp_path):
    for name, codec, told in (
        ("a.mp4", "aac", "Its sound is kept."),
        ("b.mkv", "flac", "Its sound is kept, as AAC in place of flac."),
    ):
        path = clip(tmp_path / name, 8, 17, "-c:a", codec, onset=0.0)
        data, words = read_sound(path, probe_video(path), Fraction(1))
        assert words == told
        (tmp_path / "out.m4a").write_bytes(data)
        assert abs(len(samples(tmp_path / "out.m4a")) / 48000 - 1) <= 0.06


def test_a_file_without_sound_says_so(tmp_path):
    path = clip(tmp_path / "a.mp4")
    assert read_sound(path, probe_video(path), Fraction(1)) == (None, "It has no sound.")


def test_sound_that_cannot_be_read_is_lost_with_the_reason_and_stops_nothing(tmp_path):
    path = clip(tmp_path / "a.mp4")
    data, words = read_sound(path, replace(probe_video(path), sound="wmav2"), Fraction(1))
    assert data is None
    assert words.startswith("Its sound is lost: wmav2 could not be read (")

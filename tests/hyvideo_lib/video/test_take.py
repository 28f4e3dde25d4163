"""Inputs of a run: which frames are taken, at which rate, and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from video_clips import clip, ffmpeg, numbers, samples

from hyvideo_lib.errors import InvalidFrames, InvalidSetting, InvalidSize
from hyvideo_lib.video import probe_video, read_frames, take_video, write_video


def test_where_nothing_is_asked_frames_are_taken_one_by_one_at_their_own_rate(tmp_path):
    taken = take_video(clip(tmp_path / "a.mp4", 8, 17))
    assert numbers(taken.video) == list(range(17))
    assert (taken.fps, taken.size, taken.is_resampled, taken.is_cut) == (8.0, (64, 48), False, False)
    assert taken.sentences() == (
        "Input a.mp4: 17 frames of 64 x 48 at 8 per second (2.12 s). Taken: all 17 frames, one by one, at 8 per second "
        "(2.12 s). Its colours are not marked and taken as BT.601, by its size. It has no sound."
    )


def test_a_number_of_frames_is_that_of_source_frames(tmp_path):
    taken = take_video(clip(tmp_path / "a.mp4", 8, 25), frames=17)
    assert numbers(taken.video) == list(range(17))
    assert taken.is_cut
    assert "frames 1 to 17" in taken.sentences()
    assert "17 frames are asked for" in taken.sentences()


def test_another_rate_resamples_and_says_so(tmp_path):
    path = clip(tmp_path / "a.mp4", 8, 17)
    taken = take_video(path, fps=24)
    assert numbers(taken.video) == [round((index - 1) / 3) for index in range(49)]
    assert (taken.fps, taken.is_resampled) == (24.0, True)
    assert "49 frames, resampled from its own, as asked, at 24 per second" in taken.sentences()
    assert numbers(take_video(path, fps=8).video) == list(range(17))
    assert not take_video(path, fps=8).is_resampled


def test_a_long_input_is_cut_and_one_of_other_length_snapped_and_both_are_said(tmp_path):
    long = take_video(clip(tmp_path / "a.mp4", 24, 140), 16, 16)
    assert (long.frames, long.is_cut) == (129, True)
    assert "140 frames" in long.sentences()
    assert "129 frames are taken unless another number is asked for" in long.sentences()
    assert take_video(tmp_path / "a.mp4", 16, 16, frames=137).frames == 137
    snapped = take_video(clip(tmp_path / "b.mp4", 8, 16))
    assert (snapped.frames, snapped.is_cut) == (13, True)
    assert "The last 3 are left out, as frames must be 4k + 1." in snapped.remarks


def test_a_fractional_rate_comes_out_exactly_as_it_went_in(tmp_path):
    source = clip(tmp_path / "a.mp4", "24000/1001", 9)
    for fps in (None, 23.976):
        taken = take_video(source, fps=fps)
        assert (numbers(taken.video), taken.is_resampled) == (list(range(9)), False)
        write_video(tmp_path / "b.mp4", taken.video, *taken.size, taken.fps, {}, overwrite=True)
        assert str(probe_video(tmp_path / "b.mp4").rate) == "24000/1001"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.mp4", "a.gif"])
@pytest.mark.parametrize("fps", [None, 1, 8, 60])
def test_a_still_is_one_frame_at_any_rate(tmp_path, name, fps):
    taken = take_video(clip(tmp_path / name, 8, 1), fps=fps)
    assert (taken.frames, taken.is_resampled, taken.is_cut) == (1, False, False)
    assert fps is None or taken.fps == fps
    assert "a picture of 64 x 48. Taken: 1 frame." in taken.sentences()


def test_a_clip_shorter_than_a_frame_of_the_rate_is_one_frame(tmp_path):
    taken = take_video(clip(tmp_path / "a.mp4", 60, 3), fps=2)
    assert numbers(taken.video) == [0]


def test_a_variable_rate_is_made_constant_in_time_and_said(tmp_path):
    path = clip(tmp_path / "a.mp4", 8, 9, "-vf", "setpts=(N+gt(N\\,4)*4)/8/TB", "-fps_mode", "vfr")
    taken = take_video(path)
    assert numbers(taken.video) == [0, 1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 7, 8]
    assert (taken.fps, taken.is_resampled) == (8.0, True)
    assert "at about 8 per second" in taken.sentences()
    assert "as its rate varies" in taken.sentences()


def onset(path) -> float:
    """When the sound of a file begins to be heard, in seconds."""
    return float(np.argmax(np.abs(samples(path)) > 0.05)) / 48000


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "flac"), ("a.mkv", "libopus"), ("a.avi", "mp3")]
)
def test_sound_is_kept_in_time_and_cut_to_the_frames(tmp_path, name, codec):
    taken = take_video(clip(tmp_path / name, 8, 40, "-c:a", codec, onset=1.0), frames=17)
    assert taken.to_dict()["taken"]["sound"] is True
    write_video(tmp_path / "out.mp4", taken.video, *taken.size, taken.fps, {"hyvideo": "1"}, sound=taken.sound)
    assert probe_video(tmp_path / "out.mp4").sound == "aac"
    assert abs(onset(tmp_path / "out.mp4") - 1.0) <= 0.05
    assert len(samples(tmp_path / "out.mp4")) / 48000 == pytest.approx(17 / 8, abs=0.06)
    assert numbers(read_frames(tmp_path / "out.mp4", 64, 48, 99)) == list(range(17))


def test_sound_stays_in_time_where_pictures_begin_later(tmp_path):
    clip(tmp_path / "a.mp4", 8, 17, onset=1.0)
    late = ["-itsoffset", 0.5, "-i", tmp_path / "a.mp4", "-i", tmp_path / "a.mp4"]
    ffmpeg(*late, "-map", "0:v", "-map", "1:a", "-c", "copy", tmp_path / "late.mkv")
    taken = take_video(tmp_path / "late.mkv", frames=9)
    write_video(tmp_path / "out.mp4", taken.video, *taken.size, taken.fps, {}, sound=taken.sound)
    assert abs(onset(tmp_path / "out.mp4") - 0.5) <= 0.05


def test_sound_that_cannot_be_kept_is_told(tmp_path):
    still = take_video(clip(tmp_path / "a.mp4", 8, 1, onset=0.0))
    assert still.sound is None
    assert "Its sound is lost, as one frame has no length." in still.remarks


def test_the_report_is_plain_and_whole(tmp_path):
    report = take_video(clip(tmp_path / "a.mp4", 8, 19, onset=0.0), 32, 32).to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["found"].items() >= {"width": 64, "height": 48, "frames": 19, "fps": 8.0, "sound": "aac"}.items()
    taken = {"width": 32, "height": 32, "frames": 17, "fps": 8.0, "rate": "8", "seconds": 2.125}
    assert report["taken"].items() >= (taken | {"resampled": False, "cut": True, "sound": True}).items()


def test_what_a_run_cannot_take_is_refused(tmp_path):
    path = clip(tmp_path / "a.mp4", 8, 17)
    for words, error, told in (
        ({"frames": 16}, InvalidFrames, "4k"),
        ({"frames": 21}, InvalidFrames, "has 17 at 8 per second. Use --frames 17"),
        ({"width": 50}, InvalidSize, "width is 50"),
        ({"fps": 0}, InvalidSetting, "fps is 0"),
    ):
        with pytest.raises(error, match=told):
            take_video(path, **words)
    slow = clip(tmp_path / "b.mp4", "1/2", 5)
    with pytest.raises(InvalidSetting, match=r"b\.mp4 has 0\.5"):
        take_video(slow)
    assert take_video(slow, fps=1).frames == 9

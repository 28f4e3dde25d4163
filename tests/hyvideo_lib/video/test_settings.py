from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyvideo_lib.errors import FileMissing, FileTruncated, HyvError
from hyvideo_lib.video import is_mp4, read_settings, write_video
from hyvideo_lib.video.settings import settings_text

NASTY = {
    "hyvideo": "0",
    "prompt": 'a "b" = c; # d \\ e \\n f\ng\r\n\t\x00\x7f ü 日本 🎥 ;FFMETADATA1\n[CHAPTER]',
    "=;#\\": [1, 2.5, None, True, {"x": "comment="}],
}


@pytest.fixture
def video(tmp_path) -> Path:
    write_video(tmp_path / "a.mp4", [torch.zeros(16, 16, 3, dtype=torch.uint8)], 16, 16, 8, NASTY)
    return tmp_path / "a.mp4"


def test_any_text_comes_back(video):
    assert read_settings(video) == NASTY


def test_the_text_for_ffmpeg_is_ascii_on_two_lines():
    text = settings_text(NASTY)
    assert text.isascii()
    assert text.count("\n") == 2


def box(kind: bytes, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def mp4_with(comment: bytes) -> bytes:
    data = box(b"data", (1).to_bytes(4, "big") + bytes(4) + comment)
    items = box(
        b"meta", bytes(4) + box(b"hdlr", bytes(25)) + box(b"ilst", box(b"\xa9too", b"") + box(b"\xa9cmt", data))
    )
    return box(b"ftyp", b"isom") + box(b"free", b"") + box(b"moov", box(b"mvhd", bytes(100)) + box(b"udta", items))


@pytest.mark.parametrize(
    ("comment", "settings"),
    [
        (json.dumps({"hyvideo": "9", "seed": 1}).encode(), {"hyvideo": "9", "seed": 1}),
        (b"my holiday", None),
        (b'{"seed": 1}', None),
        (b"[1]", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b"", None),
    ],
)
def test_only_a_comment_of_ours_is_settings(tmp_path, comment, settings):
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4_with(comment))
    assert is_mp4(path)
    assert read_settings(path) == settings


def test_a_video_without_comment_has_no_settings(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(box(b"ftyp", b"isom") + box(b"moov", b""))
    assert read_settings(path) is None


def test_boxes_with_a_long_size_or_up_to_the_end_are_followed(tmp_path):
    whole = mp4_with(b'{"hyvideo": "9"}')
    moov = whole.index(b"moov") - 4
    body = whole[moov + 8 :]
    long = (1).to_bytes(4, "big") + b"moov" + (len(body) + 16).to_bytes(8, "big") + body
    last = bytes(4) + b"moov" + body
    for index, form in enumerate((long, last)):
        path = tmp_path / f"{index}.mp4"
        path.write_bytes(whole[:moov] + form)
        assert read_settings(path) == {"hyvideo": "9"}


@pytest.mark.parametrize("length", range(9))
def test_a_value_too_short_for_its_own_type_holds_no_settings(tmp_path, length):
    path = tmp_path / "a.mp4"
    items = box(b"meta", bytes(4) + box(b"ilst", box(b"\xa9cmt", box(b"data", bytes(length)))))
    path.write_bytes(box(b"ftyp", b"isom") + box(b"moov", box(b"udta", items)))
    assert read_settings(path) is None
    path.write_bytes(box(b"ftyp", b"isom") + box(b"moov", box(b"udta", box(b"meta", bytes(length // 2)))))
    assert read_settings(path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_whoever_fills_it(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    program = (
        "import sys, pathlib; from hyvideo_lib.video import is_mp4\n"
        "try: is_mp4(pathlib.Path(sys.argv[1]))\n"
        "except Exception as error: print(error.code, error)"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "a.mp4")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[3])
    assert done.stdout.startswith("file_unreadable")
    assert "pipe" in done.stdout


def test_cut_short_at_any_byte_it_is_told_and_never_breaks(video, tmp_path):
    data = video.read_bytes()
    path = tmp_path / "cut.mp4"
    for end in range(8, len(data) - 1, 97):
        path.write_bytes(data[:end])
        with pytest.raises(FileTruncated):
            read_settings(path)


def test_damaged_bytes_never_break_the_reader(video, tmp_path):
    data, generator = video.read_bytes(), random.Random(0)
    path = tmp_path / "damaged.mp4"
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_settings(path)
        except HyvError:
            continue


def test_a_missing_file_is_told(tmp_path):
    for look in (is_mp4, read_settings):
        with pytest.raises(FileMissing):
            look(tmp_path / "nowhere.mp4")

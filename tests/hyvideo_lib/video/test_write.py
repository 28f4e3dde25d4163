from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hyvideo_lib.errors import Interrupted, OutputExists, OutputNotWritable, RunFailed
from hyvideo_lib.video import probe_size, read_frames, read_settings, write_video
from hyvideo_lib.video.write import ROOM, _reaches

SETTINGS = {"hyvideo": "1", "prompt": "a cat"}
COLORS = [(230, 30, 30), (30, 180, 50), (45, 80, 235), (250, 230, 40), (150, 50, 190), (15, 20, 90), (225, 208, 165)]


def flat(color: tuple[int, int, int], width: int = 64, height: int = 48) -> torch.Tensor:
    return torch.tensor(color, dtype=torch.uint8).expand(height, width, 3)


def write(path: Path, frames, **changes) -> None:
    write_video(path, frames, 64, 48, 8, SETTINGS, **changes)


def test_frames_come_back_in_order_and_in_their_colours(tmp_path):
    write(tmp_path / "a.mp4", [flat(color) for color in COLORS])
    found = read_frames(tmp_path / "a.mp4", 64, 48, 99, 8)
    assert found.shape == (len(COLORS), 48, 64, 3)
    wanted = torch.tensor(COLORS)[:, None, None].expand(found.shape)
    assert (found.int() - wanted).abs().max() <= 4  # 8-bit YUV alone costs up to 3


def test_colours_are_marked_as_what_they_are(tmp_path):
    write(tmp_path / "a.mp4", [flat(COLORS[0])])
    data = (tmp_path / "a.mp4").read_bytes()
    assert b"colrnclx\x00\x01\x00\x01\x00\x01" in data  # BT.709 primaries, transfer and matrix
    assert data.index(b"moov") < data.index(b"mdat")


def test_settings_are_inside(tmp_path):
    write(tmp_path / "a.mp4", [flat(COLORS[0])])
    assert read_settings(tmp_path / "a.mp4") == SETTINGS


def test_settings_known_after_the_last_frame_replace_the_first(tmp_path):
    made = []

    def frames() -> Iterator[torch.Tensor]:
        for color in COLORS:
            made.append(color)
            yield flat(color)

    final = {**SETTINGS, "prompt": "a cat; with = and \\\n", "frames": 7, "long": "x" * (ROOM // 2)}
    write(tmp_path / "a.mp4", frames(), final=lambda: {**final, "frames": len(made)})
    assert read_settings(tmp_path / "a.mp4") == final
    assert len(read_frames(tmp_path / "a.mp4", 64, 48, 99, 8)) == len(COLORS)


def test_settings_that_outgrow_their_room_are_told_and_nothing_is_left(tmp_path):
    with pytest.raises(RunFailed, match="bytes for its settings"):
        write(tmp_path / "a.mp4", [flat(COLORS[0])], final=lambda: {**SETTINGS, "long": "x" * (ROOM + 1)})
    assert list(tmp_path.iterdir()) == []


def test_whoever_may_read_new_files_may_read_the_video(tmp_path):
    (tmp_path / "plain").touch()
    write(tmp_path / "a.mp4", [flat(COLORS[0])])
    assert (tmp_path / "a.mp4").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_interrupted_video_leaves_nothing(tmp_path):
    def frames() -> Iterator[torch.Tensor]:
        yield flat(COLORS[0])
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        write(tmp_path / "a.mp4", frames())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_on_request_and_only_when_done(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("precious")
    with pytest.raises(OutputExists):
        write(path, [flat(COLORS[0])])
    with pytest.raises(RunFailed):
        write(path, [], overwrite=True)
    assert path.read_text() == "precious"
    write(path, [flat(COLORS[0])], overwrite=True)
    assert read_settings(path) == SETTINGS
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritable):
        write(tmp_path / "file" / "a.mp4", [flat(COLORS[0])])


@pytest.mark.parametrize("name", ["-x.mp4", "a b'\".mp4", "100%d.mp4", "日本 🎥.mp4", "a:b.mp4"])
def test_strange_names_are_only_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(Path(name), [flat(COLORS[0])])
    assert probe_size(Path(name)) == (64, 48)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("code", "is_told"), [(errno.EPIPE, False), (errno.EINVAL, False), (errno.EIO, True)])
def test_a_pipe_that_nobody_reads_is_no_error_of_its_own(code, is_told):
    """Windows says EINVAL where others say EPIPE; what ended ffmpeg is in its status."""

    def write(data: bytes) -> None:
        raise OSError(code, "no")

    if is_told:
        with pytest.raises(OSError, match="no"):
            _reaches(write, b"1")
    else:
        assert not _reaches(write, b"1")

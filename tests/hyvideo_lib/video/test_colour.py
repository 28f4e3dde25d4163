"""Colours that come back as they went in, held to formulas of the standards worked out here."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from video_clips import ffmpeg

from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.video import probe_video, read_frames, write_video
from hyvideo_lib.video.colour import matrix_of

GRID = np.array(list(itertools.product((0, 85, 170, 255), repeat=3)), np.uint8)
LUMA = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}
"""What red and blue weigh, of BT.709, BT.601 and BT.2020."""
WIDTH, HEIGHT = 32, 16


def flat_frames() -> torch.Tensor:
    """A frame for each colour of the grid."""
    return torch.from_numpy(GRID)[:, None, None].expand(-1, HEIGHT, WIDTH, 3).contiguous()


def yuv(matrix: str, is_full: bool, bits: int) -> list[np.ndarray]:
    """The grid as Y, Cb, Cr, rounded."""
    red, blue = LUMA[matrix]
    rgb = GRID / 255.0
    y = rgb @ [red, 1 - red - blue, blue]
    chroma = [(rgb[:, 2] - y) / (2 - 2 * blue), (rgb[:, 0] - y) / (2 - 2 * red)]
    top, step = 2**bits - 1, 2 ** (bits - 8)
    if is_full:
        planes = [y * top, *(c * top + 128 * step for c in chroma)]
    else:
        planes = [(16 + 219 * y) * step, *((128 + 224 * c) * step for c in chroma)]
    return [np.clip(np.round(plane), 0, top) for plane in planes]


def write_grid(path: Path, matrix: str, is_full: bool, pixel_format: str, marks: str) -> Path:
    """The grid, a colour a frame, lossless, as YUV worked out here."""
    span = "pc" if is_full else "tv"
    marks = f"{marks}:range={span}"
    bits, share = (10 if "10" in pixel_format else 8), (1 if "444" in pixel_format else 2)
    kind = np.uint8 if bits == 8 else np.dtype("<u2")
    sizes = [(HEIGHT, WIDTH), *[(HEIGHT // share, WIDTH // share)] * 2]
    planes = yuv(matrix, is_full, bits)
    data = b"".join(
        np.full(size, plane[index], kind).tobytes()
        for index in range(len(GRID))
        for size, plane in zip(sizes, planes, strict=True)
    )
    stored = ["-f", "rawvideo", "-pix_fmt", pixel_format, "-s", f"{WIDTH}x{HEIGHT}", "-r", 8]
    ffmpeg(*stored, "-i", "pipe:0", "-vf", f"setparams={marks}", "-color_range", span, "-c:v", "ffv1", path, data=data)
    return path


@pytest.mark.parametrize("rounds", [1, 8])
def test_a_round_trip_neither_darkens_nor_brightens(tmp_path, rounds):
    frames = flat_frames()
    for number in range(rounds):
        path = tmp_path / f"{number}.mp4"
        write_video(path, frames, WIDTH, HEIGHT, 8, {})
        frames = read_frames(path, WIDTH, HEIGHT, 99, 8)
    error = frames.double() - torch.from_numpy(GRID)[:, None, None]
    assert error.mean(dim=(0, 1, 2)).abs().max() <= 0.1
    assert error.abs().max() <= 2


def test_patches_side_by_side_keep_their_mean_too(tmp_path):
    picture = torch.from_numpy(GRID.reshape(8, 8, 3).repeat(16, 0).repeat(16, 1))
    frames = picture.expand(3, -1, -1, -1)
    for number in range(8):
        write_video(tmp_path / f"{number}.mp4", frames, 128, 128, 8, {})
        frames = read_frames(tmp_path / f"{number}.mp4", 128, 128, 99, 8)
        error = (frames.double() - picture).mean(dim=(0, 1, 2)).abs().max()
        assert error <= (0.1 if number == 0 else 1)


@pytest.mark.parametrize("size", [(64, 32), (16, 16), (48, 16)])
def test_scaling_and_cropping_keep_the_mean(tmp_path, size):
    write_video(tmp_path / "a.mp4", flat_frames(), WIDTH, HEIGHT, 8, {})
    found = read_frames(tmp_path / "a.mp4", *size, 99, 8)
    error = found.double() - torch.from_numpy(GRID)[:, None, None]
    assert error.mean(dim=(0, 1, 2)).abs().max() <= 0.1


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "mark"), [("bt709", "bt709"), ("bt601", "smpte170m"), ("bt601", "bt470bg"), ("bt2020", "bt2020nc")]
)
def test_every_matrix_range_and_depth_is_read_as_it_is_marked(tmp_path, matrix, mark, is_full, pixel_format):
    path = write_grid(tmp_path / "a.mkv", matrix, is_full, pixel_format, f"colorspace={mark}")
    error = read_frames(path, WIDTH, HEIGHT, 99).double() - torch.from_numpy(GRID)[:, None, None]
    assert error.abs().max() <= 1
    assert error.mean(dim=(0, 1, 2)).abs().max() <= 0.1


def test_an_unmarked_file_is_what_players_take_it_for(tmp_path):
    small = write_grid(tmp_path / "a.mkv", "bt601", False, "yuv420p", "colorspace=unknown")
    error = read_frames(small, WIDTH, HEIGHT, 99).double() - torch.from_numpy(GRID)[:, None, None]
    assert error.abs().max() <= 1
    assert "BT.601" in " ".join(probe_video(small).remarks)
    sizes = {(720, 576): "bt601", (854, 480): "bt601", (1280, 720): "bt709", (720, 1280): "bt709", (960, 720): "bt709"}
    assert {size: matrix_of("unknown", "yuv420p", *size) for size in sizes} == sizes
    assert matrix_of("bt470bg", "yuv420p", 1920, 1080) == "bt601"
    assert matrix_of("gbr", "gbrp", 1920, 1080) is None


def test_pictures_come_back_exactly_and_jpeg_by_its_own_matrix(tmp_path):
    picture = GRID.reshape(8, 8, 3).repeat(16, 0).repeat(16, 1)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x128", "-i", "pipe:0"]
    ffmpeg(*raw, tmp_path / "a.png", data=picture.tobytes())
    assert torch.equal(read_frames(tmp_path / "a.png", 128, 128, 9)[0], torch.from_numpy(picture))
    planes = b"".join(
        plane.reshape(8, 8).repeat(16, 0).repeat(16, 1).astype(np.uint8).tobytes() for plane in yuv("bt601", True, 8)
    )
    stored = ["-f", "rawvideo", "-pix_fmt", "yuvj444p", "-s", "128x128", "-i", "pipe:0", "-vf", "setparams=range=pc"]
    ffmpeg(*stored, "-color_range", "pc", "-q:v", 1, tmp_path / "a.jpg", data=planes)
    error = read_frames(tmp_path / "a.jpg", 128, 128, 9)[0].double() - torch.from_numpy(picture)
    assert error.abs().max() <= 8  # JPEG's own
    assert error.mean(dim=(0, 1)).abs().max() <= 0.1


def test_a_matrix_that_cannot_be_converted_is_refused(tmp_path):
    path = write_grid(tmp_path / "a.mkv", "bt709", False, "yuv444p", "colorspace=ycgco")
    with pytest.raises(UnsupportedFile, match=r"a\.mkv cannot be read: its colours are in ycgco"):
        probe_video(path)


def test_hdr_is_told(tmp_path):
    marks = "colorspace=bt2020nc:color_trc=smpte2084"
    path = write_grid(tmp_path / "a.mkv", "bt2020", False, "yuv420p10le", marks)
    assert any("HDR (PQ)" in remark for remark in probe_video(path).remarks)

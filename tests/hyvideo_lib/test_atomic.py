from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hyvideo_lib.atomic import check_output, is_disk_full, move_file, whole_file
from hyvideo_lib.errors import DiskFull, OutputExists, OutputNotWritable


def write(path: Path, work: Callable[[Path], None]) -> None:
    with whole_file(path) as temporary:
        work(temporary)


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "done"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_goes_wrong_nothing_is_left(tmp_path, error):
    def work(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        write(tmp_path / "a.txt", work)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_meanwhile_is_not_lost(tmp_path):
    path = tmp_path / "a.txt"

    def work(temporary: Path) -> None:
        temporary.write_text("ours")
        path.write_text("theirs")

    with pytest.raises(OutputExists):
        write(path, work)
    assert path.read_text() == "theirs"
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_text("ours")
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_is_really_full_is_named(tmp_path):
    def work(temporary: Path) -> None:
        temporary.write_text("before")
        Path("/dev/full").write_text("x")

    with pytest.raises(DiskFull):
        write(tmp_path / "a.txt", work)
    assert list(tmp_path.iterdir()) == []


def test_full_is_told_from_other_troubles():
    assert is_disk_full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert not is_disk_full(OSError(errno.EACCES, ""))
    assert not is_disk_full(ValueError())


def test_checking_leaves_no_trace_but_the_folder(tmp_path):
    check_output(tmp_path / "new" / "a.txt")
    assert list((tmp_path / "new").iterdir()) == []


def test_checking_finds_what_writing_would_meet(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(OutputExists, match="--force"):
        check_output(tmp_path / "a.txt")
    check_output(tmp_path / "a.txt", overwrite=True)
    for path in (tmp_path, tmp_path / "a.txt" / "b.txt", tmp_path / "a\0b", tmp_path / ("a" * 999)):
        with pytest.raises(OutputNotWritable):
            check_output(path, overwrite=True)


def test_a_moved_file_takes_no_others_place(tmp_path):
    source, path = tmp_path / "a", tmp_path / "new" / "b"
    source.write_text("one")
    move_file(source, path)
    assert [path.read_text(), source.exists()] == ["one", False]
    source.write_text("two")
    with pytest.raises(OutputExists):
        move_file(source, path)
    assert [path.read_text(), source.read_text()] == ["one", "two"]
    assert list(path.parent.iterdir()) == [path]

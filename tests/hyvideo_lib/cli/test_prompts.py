from __future__ import annotations

from pathlib import Path

import pytest

from hyvideo_lib.cli import prompts
from hyvideo_lib.cli.prompts import read_prompts
from hyvideo_lib.errors import PromptFile

POWERSHELL = Path(__file__).parent / "prompts_utf16.txt"
"""What PowerShell's > writes."""


def write(folder: Path, data: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(data)
    return path


def test_a_utf_16_file_of_powershell_is_three_prompts():
    assert [tuple(line) for line in read_prompts(POWERSHELL)] == [
        ("a red circle moving left on a black background", 1),
        ("a blue square rising on a beige background", 2),
        ("a green triangle moving up on a navy background", 3),
    ]


def test_blank_lines_and_comments_are_skipped_and_numbers_stay(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf# three\r\n\r\n  a red circle \r\n#\ra blue square")
    assert [tuple(line) for line in read_prompts(path)] == [("a red circle", 3), ("a blue square", 5)]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"a cat\nbroken \xff byte\na dog", "line 2, byte 8"),
        (b"a cat\nnull \0 byte\na dog", r"line 2, holds U\+0000 at character 6"),
        (b"a cat\n\x1b[31mred\x1b[0m\n", r"line 2, holds U\+001B at character 1"),
        (b"a cat\xef\xbb\xbfa dog\n", r"line 1, holds U\+FEFF at character 6: .* joined"),
        ("a c\ufffdt".encode(), r"line 1, holds U\+FFFD at character 4"),
        (POWERSHELL.read_bytes()[2:], "looks like UTF-16"),
        (b"", "holds no prompts"),
        (b"# only\n\n#comments\n", "holds no prompts"),
    ],
)
def test_a_file_is_refused_as_a_whole(tmp_path, data, told):
    with pytest.raises(PromptFile, match=told):
        read_prompts(write(tmp_path, data))


def test_a_file_that_is_not_there_or_far_too_long_is_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "nowhere.txt", tmp_path, Path("a\0b")):
        with pytest.raises(PromptFile, match="cannot be read"):
            read_prompts(path)
    monkeypatch.setattr(prompts, "MAX_BYTES", 100)
    with pytest.raises(PromptFile, match="no file of prompts"):
        read_prompts(write(tmp_path, b"a" * 101))
    assert len(read_prompts(write(tmp_path, b"a" * 100))) == 1

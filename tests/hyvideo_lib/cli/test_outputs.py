from __future__ import annotations

from pathlib import Path

import pytest

from hyvideo_lib.cli.outputs import default_output, numbered


@pytest.mark.parametrize(
    ("prompts", "videos", "names"),
    [
        (1, 1, [["a.mp4"]]),
        (1, 2, [["a-1.mp4", "a-2.mp4"]]),
        (2, 1, [["a-1.mp4"], ["a-2.mp4"]]),
        (2, 2, [["a-1-1.mp4", "a-1-2.mp4"], ["a-2-1.mp4", "a-2-2.mp4"]]),
    ],
)
def test_several_videos_get_numbers(prompts, videos, names):
    found = numbered(Path("out/a.mp4"), prompts, videos)
    assert found == [[Path("out", name) for name in row] for row in names]


def test_the_default_is_an_mp4_in_output():
    path = default_output()
    assert path.parent == Path("output")
    assert path.suffix == ".mp4"

from __future__ import annotations

import pytest

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.transformer import LeanConfig


@pytest.mark.parametrize("wrong", [{"head_groups": 0}, {"head_groups": -1}, {"chunk_tokens": 0}, {"chunk_tokens": -5}])
def test_numbers_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        LeanConfig(**wrong)


@pytest.mark.parametrize(("tokens", "size"), [(100, 512), (4096, 512), (8000, 1000), (119_056, 2048)])
def test_a_chunk_is_an_eighth_of_the_video_within_bounds(tokens: int, size: int) -> None:
    assert LeanConfig().chunk_size(tokens) == size


def test_a_chunk_that_was_set_is_taken_as_it_is() -> None:
    assert LeanConfig(chunk_tokens=7).chunk_size(119_056) == 7

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.lora import ALL_BLOCKS, BlockChoice, parse_blocks

DOUBLE, SINGLE, OTHER = "double_blocks.{}.img_mod.linear", "single_blocks.{}.linear1", "final_layer.linear"


@pytest.mark.parametrize(
    ("text", "double", "single", "other"),
    [
        ("", range(20), range(40), True),
        ("all", range(20), range(40), True),
        ("double 0-9, single", range(10), range(40), False),
        ("single", (), range(40), False),
        ("SINGLE  20-39 12,other", (), {*range(20, 40), 12}, True),
        ("double 3, double 5-6", {3, 5, 6}, (), False),
        ("double, double 3", range(20), (), False),
        ("other", (), (), True),
    ],
)
def test_a_choice_includes_what_it_says(text: str, double: object, single: object, other: bool) -> None:
    choice = parse_blocks(text)
    assert {i for i in range(20) if choice.includes(DOUBLE.format(i))} == set(double)
    assert {i for i in range(40) if choice.includes(SINGLE.format(i))} == set(single)
    assert choice.includes(OTHER) is other
    assert choice.includes("txt_in.individual_token_refiner.blocks.0.mlp.fc1") is other


@pytest.mark.parametrize(
    "text", ["doubles", "double 1-", "single -3", "double 5-2", "other 3", "single,,double", "double 1,2", "12", ","]
)
def test_what_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="choice of blocks"):
        parse_blocks(text)


def test_a_block_that_is_not_there_is_refused() -> None:
    parse_blocks("double 0-19, single 39").check(20, 40)
    ALL_BLOCKS.check(0, 0)
    with pytest.raises(InvalidSetting, match="names double block 20, but this transformer has 20"):
        parse_blocks("double 0-20").check(20, 40)
    with pytest.raises(InvalidSetting, match="names single block 40"):
        BlockChoice(single=frozenset({40})).check(20, 40)


@given(st.text(max_size=40))
def test_any_text_is_a_choice_or_refused(text: str) -> None:
    with suppress(InvalidSetting):
        parse_blocks(text).check(10_000, 10_000)

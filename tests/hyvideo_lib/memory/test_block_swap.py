from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.memory.block_swap import BlockSwap, choose_blocks, fit_resident, swap_order


@given(total=st.integers(0, 60), count=st.integers(2, 60))
def test_swapped_blocks_lie_apart_however_many_they_are(total, count):
    order = swap_order(total)
    assert sorted(order) == list(range(total))
    gaps = [b - a for a, b in pairwise(sorted(order[:count]))]
    assert not gaps or max(gaps) <= 2 * min(gaps)


def test_every_second_goes_before_its_neighbours():
    assert swap_order(7) == [3, 1, 5, 0, 4, 2, 6]
    assert sorted(swap_order(60)[:30]) == list(range(1, 60, 2))


def test_double_and_single_blocks_are_counted_apart():
    assert choose_blocks(BlockSwap(2, 0), 2, 4) == {0, 1}
    assert choose_blocks(BlockSwap(0, 4), 2, 4) == {2, 3, 4, 5}
    assert choose_blocks(BlockSwap(), 2, 4) == set()
    assert choose_blocks(BlockSwap(99, 1), 2, 4) == {0, 1, 5}


@given(sizes=st.lists(st.integers(1, 9), max_size=20), budget=st.integers(0, 200))
def test_what_stays_fits_the_budget(sizes, budget):
    kept = fit_resident(sizes, range(len(sizes)), budget)
    assert sum(sizes[i] for i in kept) <= budget
    assert fit_resident(sizes, range(len(sizes)), None) == list(range(len(sizes)))


def test_no_more_blocks_leave_than_must():
    assert len(fit_resident([5] * 10, range(10), 34)) == 6


@pytest.mark.parametrize("numbers", [(-2, 0, 1), (0, -3, 1), (0, 0, -1)])
def test_negative_numbers_are_refused(numbers):
    with pytest.raises(InvalidSetting, match="must be 0 or more"):
        BlockSwap(*numbers)

"""What holds for every plan of a block swap: asked for blocks are swapped, and what stays is as much as can."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.memory.block_swap import BlockSwap, choose_blocks, fit_resident

COUNTS = st.integers(-1, 70)


@given(double=COUNTS, single=COUNTS, num_double=st.integers(0, 30), num_single=st.integers(0, 60))
def test_each_kind_swaps_as_many_blocks_as_asked_or_all(
    double: int, single: int, num_double: int, num_single: int
) -> None:
    chosen = choose_blocks(BlockSwap(double, single), num_double, num_single)
    assert chosen <= set(range(num_double + num_single))
    assert len([index for index in chosen if index < num_double]) == min(max(0, double), num_double)
    assert len([index for index in chosen if index >= num_double]) == min(max(0, single), num_single)


@given(size=st.integers(1, 9), indices=st.sets(st.integers(0, 30)), budget=st.integers(-3, 300))
def test_of_equal_blocks_as_many_stay_as_fit(size: int, indices: set[int], budget: int) -> None:
    candidates = sorted(indices)
    kept = fit_resident([size] * 31, candidates, budget)
    assert kept == [index for index in candidates if index in set(kept)]
    assert len(kept) == max(0, min(len(candidates), budget // size))


@given(sizes=st.lists(st.integers(0, 9), max_size=20), budget=st.integers(0, 120), more=st.integers(0, 50))
def test_a_larger_budget_keeps_the_same_and_more(sizes: list[int], budget: int, more: int) -> None:
    few, many = (fit_resident(sizes, range(len(sizes)), room, 2) for room in (budget, budget + more))
    assert set(few) <= set(many)
    assert sum(sizes[index] for index in few) <= budget

"""Plans from sizes alone, held to what an Offloader does with the same sizes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.memory.machine import CARDS, find_card, parse_amount
from hyvideo_lib.memory.plan import (
    PROCESS_BYTES,
    Way,
    Weights,
    block_flops,
    choose_way,
    place,
    plan_stage,
    step_cost,
    with_reserve,
)

MIB = 2**20
WEIGHTS = Weights(100 * MIB, (300 * MIB,) * 2 + (150 * MIB,) * 4, 2, 50 * MIB, 500 * MIB)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.integers(0, 400),
    st.integers(-1, 9),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_weights_lie_where_an_offloader_puts_them(sizes, budget, count, prefetch):
    blocks = [nn.Linear(size, 1, bias=False) for size in sizes]
    module = nn.ModuleList([*blocks, nn.Linear(7, 1, bias=False)])
    swap = BlockSwap(count, -1, prefetch)
    offloader = Offloader(
        module, blocks, len(blocks), swap, lambda tensor, device: tensor.clone(), lambda device: prefetch > 0
    )
    offloader.load("cpu", budget)
    free = with_reserve(0) + budget
    weights = Weights(28, tuple(4 * size for size in sizes), len(sizes))
    placed = place(weights, 0, free, swap)
    assert len(placed.swapped) == offloader.num_swapped
    offloader.go_home()


@given(works=st.lists(st.integers(0, 2**34), min_size=1), weights=st.integers(0, 2**35), free=st.integers(0, 2**36))
def test_the_first_way_that_leaves_room_is_chosen(works: list[int], weights: int, free: int) -> None:
    works.sort(reverse=True)
    chosen, work = choose_way(enumerate(works), weights, free)
    room = max(free - weights, free // 2)
    assert work == works[chosen]
    assert all(with_reserve(each) > room for each in works[:chosen])
    assert with_reserve(work) <= room or chosen == len(works) - 1
    assert choose_way(enumerate(works), weights, None) == (0, works[0])


def test_all_of_it_stays_where_there_is_room():
    plan = plan_stage("sample", WEIGHTS, [Way("", 200 * MIB)], 4 * 2**30, 2**40, BlockSwap())
    assert (plan.fits, plan.swapped, plan.resident) == (True, (), 1300 * MIB)
    assert plan.device_bytes == 1500 * MIB
    assert plan.ram_bytes == PROCESS_BYTES + WEIGHTS.num_bytes


def test_blocks_go_before_the_way_changes_and_the_way_before_it_does_not_fit():
    ways = [Way("", 200 * MIB), Way("smaller", 50 * MIB)]
    plan = plan_stage("sample", WEIGHTS, ways, 1400 * MIB, None, BlockSwap())
    assert plan.fits
    assert plan.way == ways[0]
    assert plan.swapped
    assert plan.device_bytes + 256 * MIB <= 1400 * MIB
    tight = plan_stage("sample", WEIGHTS, ways, 1050 * MIB, None, BlockSwap())
    assert (tight.fits, tight.way.label, len(tight.swapped)) == (True, "smaller", 6)
    hopeless = plan_stage("sample", WEIGHTS, ways, 300 * MIB, None, BlockSwap())
    assert (hopeless.fits, hopeless.way.label) == (False, "smaller")


def test_too_little_ram_is_told_beside_a_card_and_refused_without_one():
    def plan(ram: int | None, free: int | None = 1050 * MIB):
        return plan_stage("sample", WEIGHTS, [Way("", 50 * MIB)], free, ram, BlockSwap())

    roomy, tight = plan(2**40), plan(2 * 2**30)
    assert (roomy.fits, roomy.ram_short) == (tight.fits, 0) == (True, 0)
    assert tight.ram_short == tight.ram_bytes - 2 * 2**30 > 0
    assert tight.ram_bytes < roomy.ram_bytes  # fewer blocks are pinned
    assert plan(None).ram_short == 0
    assert (plan(2 * 2**30, None).fits, plan(2 * 2**30, None).ram_short) == (False, 0)


def test_on_a_cpu_everything_is_in_ram():
    plan = plan_stage("sample", WEIGHTS, [Way("", 200 * MIB)], None, 4 * 2**30, BlockSwap())
    assert (plan.device_bytes, plan.swapped, plan.fits) == (None, (), True)
    assert plan.ram_bytes == PROCESS_BYTES + WEIGHTS.num_bytes + 200 * MIB
    assert not plan_stage("sample", WEIGHTS, [Way("", 2**40)], None, 4 * 2**30, BlockSwap()).fits


def test_the_arithmetic_of_the_released_model():
    tokens = 33 * 45 * 80 + 256
    step = 60 * block_flops(3072, 4.0, tokens)
    assert step == pytest.approx(12e15, rel=0.02)
    assert 60 * 4 * tokens**2 * 3072 / step == pytest.approx(0.87, abs=0.01)


def test_a_step_costs_what_is_computed_unless_the_link_is_slower():
    seconds = [1.0] * 6
    fast = step_cost(WEIGHTS, (0, 3), seconds, 1, 1e12)
    assert fast.seconds == pytest.approx(6.0, rel=1e-3)
    assert fast.moved == 450 * MIB
    slow = step_cost(WEIGHTS, range(6), seconds, 1, 100 * MIB)
    assert slow.seconds == pytest.approx(12.0, rel=0.01)  # 1200 MiB
    assert step_cost(WEIGHTS, (), seconds, 1, 1.0).moved == 0


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("12GiB", 12 * 2**30),
        ("32 GB", 32e9),
        ("25GB/s", 25e9),
        ("512mib", 2**29),
        ("1.5TB", 1.5e12),
        ("12884901888", 12 * 2**30),
    ],
)
def test_amounts_are_read_as_people_write_them(text, amount):
    assert parse_amount(text, "ram") == amount


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "12 GiBs", "1i", "nan", "1e999", "12GiB 5", "12", "12B"])
def test_other_words_are_refused(text):
    with pytest.raises(InvalidSetting, match=r"ram is .* but must be"):
        parse_amount(text, "ram")


def test_cards_are_found_however_they_are_spaced():
    assert find_card("RTX 4090") == find_card("rtx-4090") == CARDS["rtx4090"]
    with pytest.raises(InvalidSetting, match="rtx3090"):
        find_card("rtx 9999")

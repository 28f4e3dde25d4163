"""Plans from sizes alone, held to what an Offloader does with the same sizes."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.memory.machine import CARDS, GEFORCE_OPERATIONS, find_card, parse_amount
from hyvideo_lib.memory.pinned import pinned_bytes
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


@given(
    works=st.lists(st.integers(0, 2**34), min_size=1),
    weights=st.integers(0, 2**35),
    free=st.integers(0, 2**36),
    share=st.floats(0, 1),
)
def test_the_first_way_that_leaves_room_is_chosen(works: list[int], weights: int, free: int, share: float) -> None:
    works.sort(reverse=True)
    least = int(share * weights)
    chosen, work = choose_way(enumerate(works), weights, free, least)
    room = max(free - weights, min(free // 2, free - least))
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


def test_files_that_ram_cannot_hold_are_slow_and_what_must_be_there_is_refused():
    def plan(ram: int | None, free: int | None = 1050 * MIB, weights: Weights = WEIGHTS):
        return plan_stage("sample", weights, [Way("", 50 * MIB)], free, ram, BlockSwap())

    roomy, tight = plan(2**40), plan(2304 * MIB)
    assert (roomy.fits, roomy.is_slow, roomy.ram_short, roomy.files_short) == (True, False, 0, 0)
    assert (tight.fits, tight.is_slow, tight.held_short) == (True, True, 0)
    assert tight.ram_short == tight.ram_bytes - 2304 * MIB > tight.files_short > 0
    assert tight.files_short == tight.ram.held + tight.ram.again - 2304 * MIB
    assert tight.ram.buffers < roomy.ram.buffers  # fewer blocks are pinned
    unknown = plan(None)
    assert (unknown.fits, unknown.ram_short, unknown.held_short, unknown.files_short) == (True, 0, 0, 0)
    for free in (1050 * MIB, None):  # weights that were converted when they were loaded are in no file
        held = plan(2304 * MIB, free, replace(WEIGHTS, is_mapped=False))
        assert (held.fits, held.files_short) == (False, 0)
        assert held.held_short == held.ram.held - 2304 * MIB > 0
    assert (plan(2304 * MIB, None).fits, plan(2304 * MIB, None).is_slow) == (True, True)


def test_what_is_gone_through_once_is_neither_pinned_nor_read_again():
    ways = [Way("", 50 * MIB)]
    often, once = (
        plan_stage("text", WEIGHTS, ways, 1050 * MIB, 2**40, BlockSwap(), is_repeated) for is_repeated in (True, False)
    )
    assert often.swapped == once.swapped != ()
    assert once.ram.buffers == 2 * 300 * MIB  # two slots of the largest
    assert often.ram.buffers == pinned_bytes([WEIGHTS.blocks[i] for i in often.swapped], None)[0]
    assert (once.ram.again, often.ram.again) == (0, WEIGHTS.away)


def test_in_ram_the_way_that_leaves_room_for_files_goes_first():
    ways = [Way("", 1500 * MIB), Way("smaller", 50 * MIB)]
    free_ram = PROCESS_BYTES + WEIGHTS.num_bytes + 100 * MIB
    assert plan_stage("sample", WEIGHTS, ways, None, free_ram, BlockSwap()).way == ways[1]
    tight = plan_stage("sample", WEIGHTS, ways, None, PROCESS_BYTES + 1600 * MIB, BlockSwap())
    assert (tight.way, tight.is_slow) == (ways[0], True)


def test_summands_add_up():
    ways = [Way("", 200 * MIB)]
    for free, ram in ((1050 * MIB, 2 * 2**30), (2**40, None), (None, 2**33)):
        plan = plan_stage("sample", WEIGHTS, ways, free, ram, BlockSwap())
        use = plan.ram
        assert plan.ram_bytes == use.files + use.converted + use.buffers + use.work + use.process
        if free is not None:
            assert plan.device_bytes == plan.resident + plan.way.work
            assert plan.device_short == max(0, plan.device_bytes + plan.reserve - free)


def test_a_way_that_asks_for_options_is_not_what_was_asked():
    ways = [Way("", 900 * MIB), Way("smaller (--smaller)", 50 * MIB, is_asked=False)]
    plan = plan_stage("sample", WEIGHTS, ways, 1050 * MIB, None, BlockSwap())
    assert (plan.fits, plan.fits_as_asked, plan.way) == (True, False, ways[1])
    alone = plan_stage(
        "sample", WEIGHTS, [Way("in groups, which happens by itself", 50 * MIB)], 2**33, None, BlockSwap()
    )
    assert alone.fits_as_asked


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
        ("512mib", 2**29),
        ("1.5TB", 1.5e12),
        ("12884901888", 12 * 2**30),
    ],
)
def test_amounts_are_read_as_people_write_them(text, amount):
    assert parse_amount(text, "ram") == amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        *(("25GB/s", 25e9), ("25GBps", 25e9), ("25GB", 25e9)),
        *(("8gbps", 1e9), ("200Gb/s", 25e9), ("8Gibps", 2**30)),
    ],
)
def test_a_small_b_of_a_rate_is_a_bit(text, amount):
    assert parse_amount(text, "link", "25GB/s") == amount
    if text.endswith("s"):
        with pytest.raises(InvalidSetting, match="such as 12GiB"):
            parse_amount(text, "ram")


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "12 GiBs", "1i", "nan", "1e999", "12GiB 5", "12", "12B"])
def test_other_words_are_refused(text):
    with pytest.raises(InvalidSetting, match=r"ram is .* but must be"):
        parse_amount(text, "ram")


def test_a_link_without_its_unit_is_told_the_unit_of_links():
    with pytest.raises(InvalidSetting, match="must be 1MiB/s or more; a unit may be missing, as in 25GB/s"):
        parse_amount("25", "link", "25GB/s")


@pytest.mark.parametrize(
    ("name", "sms", "boost_ghz"),
    [("rtx3090", 82, 1.695), ("rtx4080", 76, 2.505), ("rtx4090", 128, 2.52), ("rtx5090", 170, 2.407)],
)
def test_what_is_stated_of_a_card_is_what_would_be_computed(name, sms, boost_ghz):
    assert CARDS[name].speed == pytest.approx(GEFORCE_OPERATIONS * sms * boost_ghz * 1e9, rel=0.003)


def test_cards_are_found_however_they_are_spaced():
    assert find_card("RTX 4090") == find_card("rtx-4090") == CARDS["rtx4090"]
    with pytest.raises(InvalidSetting, match="rtx3090"):
        find_card("rtx 9999")

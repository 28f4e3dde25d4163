from __future__ import annotations

from fractions import Fraction

import pytest

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.video.rate import check_fps, exact_rate, find_rate, is_same_rate, rate_text

NTSC = Fraction(24000, 1001)


@pytest.mark.parametrize(
    ("fps", "rate"),
    [(24.0, "24"), (24000 / 1001, "24000/1001"), (30000 / 1001, "30000/1001"), (12.5, "25/2"), (23.976, "2997/125")],
)
def test_a_number_stands_for_an_exact_fraction(fps, rate):
    assert str(exact_rate(fps)) == rate


def test_a_typed_rate_is_the_same_as_the_exact_one_but_24_is_not_23_976():
    assert is_same_rate(exact_rate(23.976), NTSC)
    assert is_same_rate(exact_rate(29.97), Fraction(30000, 1001))
    assert not is_same_rate(Fraction(24), NTSC)


def test_times_rounded_to_milliseconds_are_of_a_constant_rate():
    times = [Fraction(round(1000 * index / NTSC), 1000) for index in range(500)]
    assert find_rate(times, NTSC) == (NTSC, True)
    rate, is_constant = find_rate(times, None)
    assert is_constant
    assert rate == pytest.approx(float(NTSC), rel=1e-4)


def test_a_wrong_rate_in_the_header_gives_way_to_the_times():
    times = [Fraction(index, 8) for index in range(17)]
    assert find_rate(times, Fraction(1000)) == (8, True)


def test_a_gap_makes_a_rate_variable_and_the_usual_distance_is_told():
    times = [Fraction(index, 30) for index in [*range(20), *range(40, 60)]]
    assert find_rate(times, Fraction(30)) == (30, False)
    assert find_rate(times, Fraction(90000)) == (30, False)


def test_of_less_than_two_times_the_header_is_all_that_is_known():
    assert find_rate([], Fraction(25)) == (25, True)
    assert find_rate([Fraction(0)], None) == (None, True)
    assert find_rate([Fraction(0), Fraction(0)], None) == (None, True)


@pytest.mark.parametrize("fps", [0, -1, 0.5, 241, float("nan"), float("inf")])
def test_rates_out_of_range_are_refused(fps):
    with pytest.raises(InvalidSetting, match="fps is"):
        check_fps(fps)


def test_a_rate_in_words():
    assert rate_text(Fraction(8)) == "8"
    assert rate_text(NTSC) == "23.976 (24000/1001)"

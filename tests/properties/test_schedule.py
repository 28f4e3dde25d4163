"""What holds for every run's noise levels: shifts compose and can be undone, and progress follows from the level."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.sampling import make_sigmas, shift_sigmas, timesteps_from, truncate_sigmas
from hyvideo_lib.sampling.schedule import rising_sigmas, step_progress

SHIFTS = st.floats(0.1, 20.0)
STEPS = st.integers(1, 80)


@given(first=SHIFTS, second=SHIFTS)
def test_two_shifts_are_one_by_their_product(first: float, second: float) -> None:
    levels = torch.linspace(1, 0, 33, dtype=torch.float64)
    twice, once = shift_sigmas(shift_sigmas(levels, first), second), shift_sigmas(levels, first * second)
    assert torch.allclose(twice, once, rtol=0, atol=1e-12)  # float64 rounds at 1e-16


@given(shift=SHIFTS)
def test_a_shift_is_undone_by_its_inverse(shift: float) -> None:
    levels = torch.linspace(1, 0, 33, dtype=torch.float64)
    assert torch.allclose(shift_sigmas(shift_sigmas(levels, shift), 1 / shift), levels, rtol=0, atol=1e-12)


@given(steps=STEPS, shift=SHIFTS, more=st.floats(1.01, 4.0))
def test_more_shift_lifts_every_level_between_the_ends(steps: int, shift: float, more: float) -> None:
    low, high = make_sigmas(steps, shift), make_sigmas(steps, shift * more)
    assert bool((high[1:-1] > low[1:-1]).all())
    assert torch.equal(low[[0, -1]], high[[0, -1]])


@given(steps=STEPS, shift=SHIFTS)
def test_timesteps_are_thousandths_and_rising_levels_the_complement(steps: int, shift: float) -> None:
    sigmas = make_sigmas(steps, shift)
    assert torch.equal(timesteps_from(sigmas) / 1000, sigmas[:-1].mul(1000).div(1000))
    assert torch.equal(rising_sigmas(sigmas) + sigmas, torch.ones(steps + 1))


@given(steps=STEPS, strength=st.floats(0.0, 1.0, exclude_min=True))
def test_a_strength_keeps_its_fraction_of_the_steps_to_within_a_half(steps: int, strength: float) -> None:
    sigmas = make_sigmas(steps, 7.0)
    kept = truncate_sigmas(sigmas, strength)
    assert torch.equal(kept, sigmas[len(sigmas) - len(kept) :])
    assert len(kept) >= 2
    assert abs(len(kept) - 1 - strength * steps) <= 0.5 or len(kept) == 2


@given(steps=STEPS, shift=SHIFTS, data=st.data())
def test_progress_rises_as_the_level_falls_and_is_that_of_its_step(
    steps: int, shift: float, data: st.DataObject
) -> None:
    levels = make_sigmas(steps, shift).tolist()
    step = data.draw(st.integers(0, steps - 1))
    inside = data.draw(st.floats(levels[step + 1], levels[step], exclude_min=True))
    assert step_progress(inside, levels) == (step + 0.5) / steps
    assert all(a <= b for a, b in pairwise(step_progress(level, levels) for level in levels))

"""Noise levels against the reference's, and what holds for every schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hyvideo_lib.errors import InvalidSetting, InvalidSteps
from hyvideo_lib.sampling import make_sigmas, rising_sigmas, shift_sigmas, timesteps_from, truncate_sigmas
from hyvideo_lib.sampling.schedule import step_progress

GOLDENS = load_file(Path(__file__).parents[2] / "goldens" / "primitives.safetensors")
SCHEDULES = sorted(key.removesuffix(".sigmas") for key in GOLDENS if key.startswith("sched.") and "sigmas" in key)


def parse_schedule(name: str) -> tuple[int, int]:
    """(steps, shift) of a golden's name, as in sched.shift7.n50."""
    _, shift, steps = name.split(".")
    return int(steps.removeprefix("n")), int(shift.removeprefix("shift"))


def test_goldens_hold_the_schedules_they_should() -> None:
    assert len(SCHEDULES) >= 32


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigmas_and_timesteps_are_bit_equal_to_the_reference(name: str) -> None:
    sigmas = make_sigmas(*parse_schedule(name))
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, GOLDENS[f"{name}.sigmas"])
    assert torch.equal(timesteps_from(sigmas), GOLDENS[f"{name}.timesteps"])


def test_rising_sigmas_are_the_reference_without_reverse() -> None:
    sigmas = rising_sigmas(make_sigmas(10, 7.0))
    assert torch.equal(sigmas, GOLDENS["sched_noreverse.shift7.n10.sigmas"])
    assert torch.equal(timesteps_from(sigmas), GOLDENS["sched_noreverse.shift7.n10.timesteps"])


@given(steps=st.integers(1, 200), shift=st.floats(0.01, 100.0))
def test_sigmas_fall_strictly_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = make_sigmas(steps, shift)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0] == 1.0
    assert sigmas[-1] == 0.0
    assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_a_shift_of_one_changes_nothing_and_a_larger_one_raises_every_inner_level() -> None:
    sigmas = torch.linspace(1, 0, 21)
    assert torch.equal(shift_sigmas(sigmas, 1.0), sigmas)
    assert bool((shift_sigmas(sigmas, 3.0)[1:-1] > sigmas[1:-1]).all())


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "20"])
def test_steps_that_are_no_positive_whole_number_are_refused(steps: int) -> None:
    with pytest.raises(InvalidSteps, match=f"steps is {steps!r}"):
        make_sigmas(steps, 7.0)


@pytest.mark.parametrize("shift", [0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")])
def test_a_shift_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(InvalidSetting, match="shift"):
        make_sigmas(10, shift)


@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [
        (10, 1.0, 10),
        (10, 0.7, 7),
        (50, 0.6, 30),
        (10, 0.25, 3),
        (10, 0.24, 2),
        (100, 0.55, 55),
        (10, 0.01, 1),
        (1, 0.5, 1),
    ],
)
def test_strength_keeps_the_nearest_number_of_steps_but_at_least_one(steps: int, strength: float, kept: int) -> None:
    sigmas = make_sigmas(steps, 7.0)
    assert torch.equal(truncate_sigmas(sigmas, strength), sigmas[-kept - 1 :])


@given(steps=st.integers(1, 100), low=st.floats(0.001, 1.0), high=st.floats(0.001, 1.0))
def test_more_strength_never_starts_at_less_noise(steps: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    sigmas = make_sigmas(steps, 7.0)
    assert truncate_sigmas(sigmas, low)[0] <= truncate_sigmas(sigmas, high)[0]


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(InvalidSetting, match="strength"):
        truncate_sigmas(make_sigmas(10, 7.0), strength)


def test_progress_is_the_middle_of_the_step_a_sigma_belongs_to() -> None:
    levels = [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [step_progress(sigma, levels) for sigma in levels] == [0.125, 0.375, 0.625, 0.875, 0.875]
    assert step_progress(0.6, levels) == 0.375
    assert step_progress(1.5, levels) == 0.125

"""Noise levels of a run: the flow-matching grid that falls from 1 (noise) to 0 (data), shifted for large videos.

A noise level sigma mixes `x = sigma * noise + (1 - sigma) * data`; the model is told the timestep 1000 * sigma. The
formulas and their float32 order of operations are those of the reference's FlowMatchDiscrete, so the numbers are
bit-equal to it. Pure functions, always on the CPU: levels are read one by one as Python floats.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidSetting, InvalidSteps

TIMESTEPS_PER_SIGMA = 1000.0
SHIFT_RANGE = (0.01, 100.0)
"""Far beyond what makes sense. A larger one leaves no noise levels between 1 and 0 in float32."""


def make_sigmas(steps: int, shift: float) -> Tensor:
    """Noise levels of a run of `steps` steps.

    Returns [steps + 1], float32, strictly falling from exactly 1 to exactly 0.
    Raises InvalidSteps unless steps is a whole number >= 1, InvalidSetting unless shift is within SHIFT_RANGE.
    """
    low, high = SHIFT_RANGE
    if not low <= shift <= high:
        raise InvalidSetting(f"shift is {shift}, but must be from {low:g} to {high:g}. The released models use 7.")
    return shift_sigmas(torch.linspace(1.0, 0.0, check_steps(steps) + 1), shift)


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Move noise levels towards 1 for larger videos: shift * s / (1 + (shift - 1) * s); the ends 0 and 1 stay exact.

    sigmas: any shape, within 0..1. shift: > 0, and 1 changes nothing. Raises InvalidSetting if shift <= 0.
    HunyuanVideo report, section on time-step shifting.
    """
    if not (shift > 0 and math.isfinite(shift)):
        raise InvalidSetting(f"shift is {shift}, but must be above 0. The released models use 7.")
    shifted = shift * sigmas / (1.0 + (shift - 1.0) * sigmas)
    # For a fractional shift the rounded formula misses 1 by one unit in the last place.
    return torch.where(sigmas == 1.0, sigmas, shifted)


def rising_sigmas(sigmas: Tensor) -> Tensor:
    """1 - sigmas: the reference's levels with its `reverse=False`. The released weights need the falling ones."""
    return 1.0 - sigmas


def timesteps_from(sigmas: Tensor) -> Tensor:
    """What the model is told at each step of a run: 1000 * sigma, never rounded to whole numbers.

    sigmas: [steps + 1]. Returns [steps]; the last level is where the run arrives and gets no model call.
    """
    return TIMESTEPS_PER_SIGMA * sigmas[:-1]


def truncate_sigmas(sigmas: Tensor, strength: float) -> Tensor:
    """The tail of a run that starts from given latents instead of noise (video to video).

    strength: in (0, 1], the fraction of the steps that are run, rounded to the nearest whole number (a half rounds up)
    and at least one. 1 keeps all steps: the run starts from pure noise and nothing is left of the given latents.
    sigmas: [steps + 1]. Returns [kept + 1]; mix noise into the latents at its first level (`noise.mix_noise`).
    Raises InvalidSetting for a strength outside (0, 1].
    """
    if not 0.0 < strength <= 1.0:
        raise InvalidSetting(
            f"strength is {strength}, but must be above 0 and at most 1: "
            "0.3 changes the given video a little, 1 replaces it."
        )
    steps = len(sigmas) - 1
    kept = max(1, math.floor(strength * steps + 0.5))
    return sigmas[steps - kept :]


def step_progress(sigma: float, levels: Sequence[float]) -> float:
    """How far into a run a model call at `sigma` is, as the fraction of the run at the middle of its step.

    Step i of n, from 0, covers levels[i] >= sigma > levels[i + 1] and has progress (i + 0.5) / n. So the answer depends
    on sigma alone: a solver that calls the model twice a step gets the same for both calls at one level.
    levels: the run's sigmas, falling, as floats. A sigma outside them belongs to the first or the last step.
    """
    steps = len(levels) - 1
    reached = bisect_right(levels, -sigma, key=lambda level: -level)
    return (min(max(reached - 1, 0), steps - 1) + 0.5) / steps


def check_steps(steps: int) -> int:
    """`steps` itself. Raises InvalidSteps unless it is a whole number >= 1."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidSteps(f"steps is {steps!r}, but must be a whole number of at least 1. 20 to 50 are usual.")
    return steps

"""Solvers of the flow-matching ODE dx/dsigma = velocity(x, sigma), from noise (sigma 1) to data (sigma 0).

With x = sigma * noise + (1 - sigma) * data and velocity = noise - data, a model call gives two views of the same thing:
the velocity, and the clean data it aims at, `data = x - sigma * velocity`. Euler and Heun step along the velocity. The
multistep solvers use the data view, in which a step from s to t is exactly

    x_t = (t/s) * x_s + (1 - t/s) * mean of data over the step,

as follows from d(x/sigma) = data * d(1/sigma). The mean is over lambda(sigma) = log((1 - sigma) / sigma), half the log
signal-to-noise ratio, under the weight exp(lambda). Solvers differ in how they model data between its known values:
constant (which is Euler), or a polynomial in lambda. In this form only lambda itself is infinite at sigma 1 and 0; a
value that lies infinitely far away in lambda tells nothing about the slope and is left out.

Each run has its own solver object, made by `Solver.start()`; it holds what a multistep method remembers. Coefficients
are Python floats; latents keep their dtype and device. Every solver takes its last step, to sigma 0, with one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ..errors import InvalidSetting

VelocityFn = Callable[[Tensor, float], Tensor]
"""(latents [B, C, T, H, W], sigma) -> velocity of the same shape."""


class SolverRun(Protocol):
    """One solver during one run."""

    def step(self, velocity_fn: VelocityFn, latents: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Latents at sigma_next from those at sigma, 1 >= sigma > sigma_next >= 0; steps come in order."""
        ...


class Euler:
    """Straight on along the velocity: the reference's sampler."""

    def step(self, velocity_fn: VelocityFn, latents: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return latents + (sigma_next - sigma) * velocity_fn(latents, sigma)


class Heun:
    """Euler, then again with the mean of the velocities at both ends (the explicit trapezoidal rule)."""

    def step(self, velocity_fn: VelocityFn, latents: Tensor, sigma: float, sigma_next: float) -> Tensor:
        velocity = velocity_fn(latents, sigma)
        ahead = latents + (sigma_next - sigma) * velocity
        if sigma_next == 0.0:  # no model is trained to see noise in clean data; one Euler step keeps the order
            return ahead
        return latents + (sigma_next - sigma) * 0.5 * (velocity + velocity_fn(ahead, sigma_next))


class KnownData(NamedTuple):
    """The data a model call aimed at, and the noise level of that call."""

    sigma: float
    data: Tensor


class DPMSolver2M:
    """DPM-Solver++(2M), Lu et al. 2022, for flow matching: data extrapolated linearly from the last two calls."""

    def __init__(self) -> None:
        self._previous: KnownData | None = None

    def step(self, velocity_fn: VelocityFn, latents: Tensor, sigma: float, sigma_next: float) -> Tensor:
        latest = KnownData(sigma, latents - sigma * velocity_fn(latents, sigma))
        mean = extrapolate_data(latest, self._previous, sigma_next)
        self._previous = latest
        return blend_towards(latents, mean, sigma, sigma_next)


class UniPC:
    """UniPC of order 2 (Zhao et al. 2023, B2(h) variant) for flow matching.

    The predictor is that of DPM-Solver++(2M). Once the model was called at the predicted latents, that call also
    corrects them: the step is taken again with data interpolated through the new value, at no extra call.
    """

    def __init__(self) -> None:
        self._previous: KnownData | None = None
        self._latest: KnownData | None = None
        self._start: Tensor | None = None  # corrected latents from which the last step was taken

    def step(self, velocity_fn: VelocityFn, latents: Tensor, sigma: float, sigma_next: float) -> Tensor:
        reached = KnownData(sigma, latents - sigma * velocity_fn(latents, sigma))
        if self._latest is not None and self._start is not None:
            mean = interpolate_data(reached, self._latest, self._previous)
            latents = blend_towards(self._start, mean, self._latest.sigma, sigma)
        self._previous, self._latest, self._start = self._latest, reached, latents
        return blend_towards(latents, extrapolate_data(reached, self._previous, sigma_next), sigma, sigma_next)


@dataclass(frozen=True)
class Solver:
    """An entry of the table of solvers.

    order: order of convergence, held by a test. calls_per_step: model calls of every step but the one to sigma 0,
    which takes one. description: one line for help texts and menus.
    """

    start: Callable[[], SolverRun]
    order: int
    calls_per_step: int
    description: str

    def model_calls(self, steps: int) -> int:
        """Model calls of a run of `steps` steps that ends at sigma 0."""
        return self.calls_per_step * (steps - 1) + 1


SOLVERS: dict[str, Solver] = {
    "euler": Solver(Euler, 1, 1, "The reference's solver: along the velocity, one model call a step."),
    "heun": Solver(Heun, 2, 2, "Two model calls a step: closer to the exact solution, at twice the time."),
    "dpmpp_2m": Solver(
        DPMSolver2M, 2, 1, "DPM-Solver++(2M): looks back at the previous step; second order at Euler's cost."
    ),
    "unipc": Solver(UniPC, 2, 1, "UniPC: predicts, then corrects with the next call; second order at Euler's cost."),
}


def find_solver(name: str) -> Solver:
    """The solver of that name. Raises InvalidSetting that lists the names."""
    if name not in SOLVERS:
        raise InvalidSetting(f"solver is {name!r}, but must be one of: {', '.join(SOLVERS)}.")
    return SOLVERS[name]


def blend_towards(latents: Tensor, mean_data: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The exact step sigma -> sigma_next, given the weighted mean of the data over it."""
    keep = sigma_next / sigma
    return keep * latents + (1.0 - keep) * mean_data


def extrapolate_data(latest: KnownData, previous: KnownData | None, sigma_next: float) -> Tensor:
    """Mean data over a step from `latest` to sigma_next: the line through both values, taken at mid-step in lambda.

    The value alone at the first step, after a call at sigma 1 (lambda -inf: no slope to be had), and on the step to
    sigma 0 (infinitely long in lambda: no slope holds that far).
    """
    if previous is None or previous.sigma >= 1.0 or sigma_next <= 0.0:
        return latest.data
    now = half_log_snr(latest.sigma)
    ratio = (half_log_snr(sigma_next) - now) / (now - half_log_snr(previous.sigma))
    return latest.data + 0.5 * ratio * (latest.data - previous.data)


def interpolate_data(reached: KnownData, latest: KnownData, previous: KnownData | None) -> Tensor:
    """Mean data over the step latest -> reached: the parabola through the three values, integrated exactly.

    Without a usable third value the mean of the two, which is the trapezoidal rule and finite for a step from sigma 1.
    """
    if previous is None or previous.sigma >= 1.0:
        return 0.5 * (latest.data + reached.data)
    now = half_log_snr(latest.sigma)
    length = half_log_snr(reached.sigma) - now
    back = (half_log_snr(previous.sigma) - now) / length  # position of `previous` when the step runs over 0..1
    first, second = step_moments(length)
    # Weights of the slopes towards `previous` and `reached`, fixed by being exact for data = tau and data = tau**2.
    p = (first - second) / (1.0 - back)
    q = first - p
    return latest.data + (p / back) * (previous.data - latest.data) + q * (reached.data - latest.data)


def step_moments(length: float) -> tuple[float, float]:
    """Means of tau and tau**2 over 0..1 under a weight proportional to exp(length * tau), length > 0."""
    weight_at_end = -1.0 / math.expm1(-length)
    first = weight_at_end - 1.0 / length
    return first, weight_at_end - 2.0 * first / length


def half_log_snr(sigma: float) -> float:
    """lambda(sigma) = log((1 - sigma) / sigma), for sigma strictly between 0 and 1."""
    return math.log1p(-sigma) - math.log(sigma)

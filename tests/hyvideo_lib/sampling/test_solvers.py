"""Solvers on an ODE whose solution is known: data drawn from a normal distribution N(mean, spread**2).

Then x at level sigma is normal too, with mean (1 - sigma) * mean and variance ((1 - sigma) * spread)**2 + sigma**2, and
the probability flow carries each point along its own quantile z. The clean data that a call aims at depends on sigma
and on x, which is what tells the orders apart.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.sampling import SOLVERS, denoise, find_solver, make_sigmas
from hyvideo_lib.sampling.solvers import step_moments

MEAN, SPREAD, QUANTILE = torch.tensor([[0.7, -1.3, 0.2], [0.6, 0.3, 1.7], [1.1, -0.4, 0.8]], dtype=torch.float64)


def deviation(sigma: float) -> Tensor:
    return (((1 - sigma) * SPREAD) ** 2 + sigma**2).sqrt()


def exact_latents(sigma: float) -> Tensor:
    """[1, 1, 1, 1, 3], float64."""
    return ((1 - sigma) * MEAN + deviation(sigma) * QUANTILE).view(1, 1, 1, 1, 3)


def gaussian_velocity(latents: Tensor, sigma: float) -> Tensor:
    growth = (sigma - (1 - sigma) * SPREAD**2) / deviation(sigma) ** 2
    return -MEAN + (latents - (1 - sigma) * MEAN) * growth


def curved_velocity(latents: Tensor, sigma: float) -> Tensor:
    return 0.5 * torch.sin(3 * latents) + sigma * latents - 0.2


def error_of(solver: str, sigmas: Tensor) -> float:
    found = denoise(gaussian_velocity, exact_latents(sigmas[0].item()), sigmas, solver)
    return (found - exact_latents(sigmas[-1].item())).abs().max().item()


def measured_order(solver: str, coarse: Tensor, fine: Tensor) -> float:
    steps = [len(coarse) - 1, len(fine) - 1]
    return math.log(error_of(solver, coarse) / error_of(solver, fine)) / math.log(steps[1] / steps[0])


def test_the_velocity_is_the_derivative_of_the_exact_solution() -> None:
    sigma, step = 0.4, 1e-6
    slope = (exact_latents(sigma + step) - exact_latents(sigma - step)) / (2 * step)
    torch.testing.assert_close(gaussian_velocity(exact_latents(sigma), sigma), slope, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence_from_noise_to_data(name: str) -> None:
    """Both ends included, where lambda is infinite: DPM++ 2M is of order 2 there up to a logarithm."""
    order = measured_order(name, make_sigmas(512, 1.0).double(), make_sigmas(2048, 1.0).double())
    assert SOLVERS[name].order - 0.2 <= order <= SOLVERS[name].order + 0.2


@pytest.mark.parametrize(("name", "inner_order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
def test_order_of_convergence_between_the_ends(name: str, inner_order: int) -> None:
    """Away from the ends the corrector lifts UniPC by one order, as its paper proves."""
    coarse, fine = (torch.linspace(0.9, 0.05, n + 1, dtype=torch.float64) for n in (64, 256))
    assert inner_order - 0.1 <= measured_order(name, coarse, fine) <= inner_order + 0.1


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.order == 2])
def test_second_order_solvers_beat_euler_at_the_default_steps_and_shift(name: str) -> None:
    sigmas = make_sigmas(50, 7.0).double()
    assert error_of(name, sigmas) < 0.5 * error_of("euler", sigmas)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_shortest_runs_are_finite_and_constant_data_is_hit_at_once(name: str, steps: int) -> None:
    data = torch.tensor([0.5, -2.0, 3.0]).view(1, 1, 1, 1, 3)

    def towards_data(latents: Tensor, sigma: float) -> Tensor:
        return (latents - data) / sigma

    found = denoise(towards_data, torch.ones(1, 1, 1, 1, 3), make_sigmas(steps, 7.0), name)
    torch.testing.assert_close(found, data, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_table_tells_how_often_the_model_is_called(name: str, steps: int) -> None:
    levels: list[float] = []

    def counted(latents: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        return curved_velocity(latents, sigma)

    denoise(counted, torch.ones(1, 1, 1, 1, 3), make_sigmas(steps, 7.0), name)
    assert len(levels) == SOLVERS[name].model_calls(steps)
    assert min(levels) > 0.0


@pytest.mark.parametrize("name", SOLVERS)
def test_latents_keep_their_dtype_and_runs_share_nothing(name: str) -> None:
    sigmas, start = make_sigmas(6, 7.0), torch.ones(1, 1, 1, 1, 3)
    first = denoise(curved_velocity, start, sigmas, name)
    assert first.dtype == torch.float32
    assert torch.equal(first, denoise(curved_velocity, start, sigmas, name))
    assert torch.equal(start, torch.ones(1, 1, 1, 1, 3))
    assert SOLVERS[name].start() is not SOLVERS[name].start()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peer, about NumPy 2
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
@pytest.mark.parametrize("last", [0.05, 0.0])
def test_multistep_solvers_agree_with_diffusers_on_the_same_levels(name: str, last: float) -> None:
    """Independent implementations. diffusers keeps DPM++ states in float32, whence the tolerance."""
    pytest.importorskip("diffusers")
    from diffusers.schedulers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": 2}
    ends = {"lower_order_final": last == 0.0, "final_sigmas_type": "zero" if last == 0.0 else "sigma_min"}
    peer = {"dpmpp_2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[name](**flow, **ends)
    peer.set_timesteps(8)
    peer.sigmas = torch.linspace(0.95, last, 9, dtype=torch.float64)
    peer.timesteps = 1000 * peer.sigmas[:-1]

    start = torch.linspace(-2, 2, 12, dtype=torch.float64).view(1, 1, 2, 2, 3)
    latents = start
    for sigma, timestep in zip(peer.sigmas.tolist(), peer.timesteps, strict=False):
        latents = peer.step(curved_velocity(latents, sigma), timestep, latents).prev_sample
    ours = denoise(curved_velocity, start, torch.linspace(0.95, last, 9, dtype=torch.float64), name)
    torch.testing.assert_close(ours, latents.double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [0.05, 1.0, 30.0])
def test_step_moments_are_the_integrals_they_name(length: float) -> None:
    tau = torch.linspace(0, 1, 20001, dtype=torch.float64)
    weight = torch.exp(length * (tau - 1))
    total = torch.trapezoid(weight, tau)
    first, second = (torch.trapezoid(weight * tau**power, tau) / total for power in (1, 2))
    assert step_moments(length) == pytest.approx((first.item(), second.item()), abs=1e-6)


def test_every_solver_has_a_line_of_its_own_for_menus() -> None:
    lines = [solver.description for solver in SOLVERS.values()]
    assert len(set(lines)) == len(lines)
    assert all(line.endswith(".") and "\n" not in line for line in lines)


def test_an_unknown_solver_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(InvalidSetting, match="'ddim'") as error:
        find_solver("ddim")
    assert all(name in str(error.value) for name in SOLVERS)

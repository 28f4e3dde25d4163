"""Sampling: noise levels, seeded noise, guidance, solvers, and the loop that runs them."""

from __future__ import annotations

from .denoise import Kept, denoise
from .guidance import (
    CFG_RANGE,
    EMBEDDED_RANGE,
    Conditioning,
    GuidanceConfig,
    VelocityModel,
    combine_cfg,
    make_velocity_fn,
    rescale_guidance,
)
from .masks import latent_mask
from .noise import check_seed, consecutive_seeds, draw_noise, mix_noise
from .schedule import (
    SHIFT_RANGE,
    check_steps,
    make_sigmas,
    rising_sigmas,
    shift_sigmas,
    timesteps_from,
    truncate_sigmas,
)
from .solvers import SOLVERS, Solver, VelocityFn, find_solver

__all__ = [
    "CFG_RANGE",
    "EMBEDDED_RANGE",
    "SHIFT_RANGE",
    "SOLVERS",
    "Conditioning",
    "GuidanceConfig",
    "Kept",
    "Solver",
    "VelocityFn",
    "VelocityModel",
    "check_seed",
    "check_steps",
    "combine_cfg",
    "consecutive_seeds",
    "denoise",
    "draw_noise",
    "find_solver",
    "latent_mask",
    "make_sigmas",
    "make_velocity_fn",
    "mix_noise",
    "rescale_guidance",
    "rising_sigmas",
    "shift_sigmas",
    "timesteps_from",
    "truncate_sigmas",
]

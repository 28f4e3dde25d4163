"""The sampling loop: from noisy latents along a list of noise levels to clean ones, with progress, previews,
interruption, and a watch over every step that the numbers are still numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import InvalidSetting
from ..finite import FiniteWatch
from ..host import HeadlessHost, Host
from .solvers import VelocityFn, find_solver


@dataclass(frozen=True, eq=False)
class Kept:
    """What inpainting leaves alone.

    latents: [B or 1, C, T, H, W], clean, in the transformer's scale. noise: [B, C, T, H, W], the run's own, so that the
    kept part is as noisy as the rest at every level. mask: [B or 1, 1, T or 1, H, W] in 0..1, 1 where the run may
    change things.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor

    def put_back(self, latents: Tensor, sigma: float) -> Tensor:
        """The latents with the kept part at noise level sigma."""
        original = sigma * self.noise + (1.0 - sigma) * self.latents
        return self.mask * latents + (1.0 - self.mask) * original

    def checked(self, latents: Tensor) -> Kept:
        """The same on the device of the latents. Raises InvalidSetting unless all sizes fit theirs."""
        batch, channels, frames, height, width = latents.shape
        fits = {
            "latents": self.latents.shape in {(b, channels, frames, height, width) for b in (1, batch)},
            "noise": self.noise.shape == latents.shape,
            "mask": self.mask.shape in {(b, 1, t, height, width) for b in (1, batch) for t in (1, frames)},
        }
        for name, is_right in fits.items():
            if not is_right:
                raise InvalidSetting(
                    f"The {name} of what to keep are {list(getattr(self, name).shape)}, which does not fit latents of "
                    f"{list(latents.shape)}. Make them for the size and length of this video."
                )
        return Kept(self.latents.to(latents), self.noise.to(latents), self.mask.to(latents))


@torch.no_grad()
def denoise(
    velocity_fn: VelocityFn,
    latents: Tensor,
    sigmas: Tensor,
    solver: str = "euler",
    host: Host | None = None,
    clean_first: Tensor | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """Run a solver over all levels and return the latents at the last one, in the transformer's scale.

    latents: [B, C, T, H, W] at level sigmas[0]; noise itself if that is 1. The state is kept in float32 (float64
    if given so). sigmas: [steps + 1], strictly falling within 1..0. solver: a name in SOLVERS.
    clean_first: [B or 1, C, 1, H, W], clean latents of a given first frame (image to video by token replace): they are
    in place at every model call and after every step, and only the other frames move.
    kept: a part of given latents that stays as it is (inpainting); in place before the first step and after every one.
    Raises InvalidSetting, NonFiniteOutput, and whatever `host.check_interrupt` raises before a model call.
    """
    run = find_solver(solver).start()
    levels = check_levels(sigmas)
    steps = len(levels) - 1
    host = host or HeadlessHost()
    if latents.dtype != torch.float64:
        latents = latents.float()
    if clean_first is not None:
        clean_first = check_first_frame(clean_first.to(latents), latents)
        velocity_fn = hold_first_frame(velocity_fn)
    model, watch = _ObservedModel(velocity_fn, host), FiniteWatch(steps)

    host.stage("sampling", steps)
    if kept is not None:
        kept = kept.checked(latents)
        latents = kept.put_back(latents, levels[0])
    latents = replace_first_frame(latents, clean_first)
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        latents = run.step(model, latents, sigma, sigma_next)
        if kept is not None:
            latents = kept.put_back(latents, sigma_next)
        latents = replace_first_frame(latents, clean_first)
        watch.look(latents, i + 1, sigma)
        host.step(i + 1, steps)
        host.preview(model.estimate())
    return latents


def replace_first_frame(latents: Tensor, first: Tensor | None) -> Tensor:
    """Latents [B, C, T, H, W] with frame 0 from `first` [B or 1, C, 1, H, W], as a copy; unchanged if that is None."""
    if first is None:
        return latents
    return torch.cat([first.expand(len(latents), -1, -1, -1, -1), latents[:, :, 1:]], dim=2)


def hold_first_frame(velocity_fn: VelocityFn) -> VelocityFn:
    """The velocity with frame 0 at rest.

    Velocity 0 makes a clean frame stay where it is under every solver (in the middle of a step too, where Heun calls
    the model), and makes it its own estimate of the clean data. What the model says about that frame is not used.
    """

    def held(latents: Tensor, sigma: float) -> Tensor:
        velocity = velocity_fn(latents, sigma)
        return replace_first_frame(velocity, torch.zeros_like(velocity[:, :, :1]))

    return held


def check_levels(sigmas: Tensor) -> list[float]:
    """The sigmas as floats. Raises InvalidSetting unless they fall strictly, within 1..0, over at least one step."""
    levels: list[float] = sigmas.flatten().tolist()
    falling = all(high > low for high, low in pairwise(levels))
    if sigmas.ndim != 1 or len(levels) < 2 or not falling or levels[0] > 1.0 or levels[-1] < 0.0:
        raise InvalidSetting(
            f"The noise levels {levels} do not fall strictly within 1..0 over at least one step. "
            "Take them from make_sigmas, or a tail of them from truncate_sigmas."
        )
    return levels


def check_first_frame(first: Tensor, latents: Tensor) -> Tensor:
    """`first` itself. Raises InvalidSetting unless it is one frame of the latents' size, for all videos or each."""
    batch, channels, _, height, width = latents.shape
    if first.shape[1:] != (channels, 1, height, width) or len(first) not in (1, batch):
        raise InvalidSetting(
            f"The clean first frame is {list(first.shape)}, but must be {[batch, channels, 1, height, width]} "
            "(videos, channels, frames, height, width). Encode the image at the size of the video."
        )
    return first


class _ObservedModel:
    """A velocity function that lets the host interrupt before each call, and remembers the last call for previews."""

    def __init__(self, velocity_fn: VelocityFn, host: Host) -> None:
        self._velocity_fn, self._host = velocity_fn, host
        self._last: tuple[Tensor, float, Tensor] | None = None

    def __call__(self, latents: Tensor, sigma: float) -> Tensor:
        self._host.check_interrupt()
        velocity = self._velocity_fn(latents, sigma)
        self._last = latents, sigma, velocity
        return velocity

    def estimate(self) -> Tensor:
        """The clean latents the last call aimed at, float32."""
        assert self._last is not None
        latents, sigma, velocity = self._last
        return (latents - sigma * velocity).float()

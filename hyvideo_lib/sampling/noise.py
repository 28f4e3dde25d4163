"""Seeded noise. Drawn on the CPU, one generator per video, so that a video depends on its own seed and nothing else:
not on the device, not on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ..errors import InvalidSeed, InvalidSetting

NUM_SEEDS = 2**64


def draw_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Standard normal latents, one video per seed.

    shape: (C, T, H, W) of one video. Returns [len(seeds), C, T, H, W], float32, on the CPU; video i equals a draw with
    seeds[i] alone. Raises InvalidSeed.
    """
    videos = [torch.randn(tuple(shape), generator=_generator(seed), dtype=torch.float32) for seed in seeds]
    return torch.stack(videos)


def consecutive_seeds(seed: int, count: int) -> list[int]:
    """Seeds of `count` videos of one prompt: seed, seed + 1, ...; after the largest seed follows 0."""
    if count < 1:
        raise InvalidSetting(f"The number of videos per prompt is {count}, but must be at least 1.")
    first = check_seed(seed)
    return [(first + i) % NUM_SEEDS for i in range(count)]


def check_seed(seed: object) -> int:
    """The seed as an int, from an int or its decimal digits. Raises InvalidSeed unless it is in 0 .. 2**64 - 1.

    PyTorch's CPU generator looks at the low 32 bits only: seeds that differ by a multiple of 2**32 draw equal noise.
    """
    value = seed
    if isinstance(seed, str):
        with suppress(ValueError):
            value = int(seed)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < NUM_SEEDS:
        raise InvalidSeed(f"seed is {seed!r}, but must be a whole number from 0 to {NUM_SEEDS - 1}.")
    return value


def mix_noise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Latents at noise level sigma: sigma * noise + (1 - sigma) * latents.

    latents: [B, C, T, H, W] or [1, C, T, H, W] for one video under several seeds. noise: [B, C, T, H, W].
    Raises InvalidSetting for other pairs of shapes.
    """
    if latents.shape[1:] != noise.shape[1:] or len(latents) not in (1, len(noise)):
        raise InvalidSetting(
            f"The starting latents are {list(latents.shape)}, but the run asks for {list(noise.shape)} "
            "(videos, channels, frames, height, width). Use the size and length of the given video."
        )
    return sigma * noise + (1.0 - sigma) * latents


def _generator(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(check_seed(seed))

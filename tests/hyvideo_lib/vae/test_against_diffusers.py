"""Encodes and decodes against diffusers' class with the same weights, at sizes that the goldens do not have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import VAE, relative_error, tiny_vae

from benchmarks.peers import diffusers_vae, set_tiles
from hyvideo_lib.vae import Tiles, VAEConfig, lean, winograd

TOLERANCE = 2e-5
"""Of the largest value: float32 rounding through all layers, the same bound as for the recorded cases."""

UNEVEN = VAEConfig(block_channels=(4, 8, 12, 8), layers_per_block=2, norm_groups=2, latent_channels=3)
LATENTS = ((1, 5, 3), (2, 3, 7), (3, 2, 2), (4, 5, 4))
"""Latent sizes (T, H, W); an image is one frame."""
TILED = {
    "space": ((2, 7, 6), Tiles(size=32, frames=64)),
    "space in one axis": ((1, 3, 9), Tiles(size=32, frames=64)),
    "time": ((7, 3, 2), Tiles(size=256, frames=16)),
    "both": ((6, 5, 6), Tiles(size=32, frames=16)),
    "half shared": ((6, 6, 4), Tiles(size=32, frames=16, overlap=0.5)),
    "nothing shared": ((5, 4, 5), Tiles(size=16, frames=8, overlap=0.0)),
}


@pytest.fixture(params=["plain", "lean"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of the blocks, whatever the size would choose; the lean one with all it has."""
    monkeypatch.setattr(lean, "MIN_PIXELS", 0 if request.param == "lean" else 10**9)
    monkeypatch.setattr(winograd, "MIN_PIXELS", 0)
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)


def pixels_of(latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    frames, height, width = latent_shape
    return 4 * (frames - 1) + 1, 8 * height, 8 * width


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("config", [VAE, UNEVEN], ids=["VAE", "UNEVEN"])
@pytest.mark.parametrize("latent_shape", LATENTS)
def test_an_untiled_decode_equals_diffusers(latent_shape: tuple[int, int, int], config: VAEConfig) -> None:
    vae = tiny_vae(config, seed=2)
    latents = noise(2, config.latent_channels, *latent_shape)
    assert relative_error(vae.decode(latents), diffusers_vae(vae).decode(latents).sample) <= TOLERANCE


@torch.no_grad()
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("config", [VAE, UNEVEN], ids=["VAE", "UNEVEN"])
@pytest.mark.parametrize("latent_shape", LATENTS)
def test_an_untiled_encode_equals_diffusers(latent_shape: tuple[int, int, int], config: VAEConfig) -> None:
    vae = tiny_vae(config, seed=3)
    video = noise(2, 3, *pixels_of(latent_shape)).clamp(-1, 1)
    found, expected = vae.encode(video), diffusers_vae(vae).encode(video).latent_dist
    assert relative_error(found.mean, expected.mean) <= TOLERANCE
    assert relative_error(found.logvar, expected.logvar) <= TOLERANCE


@torch.no_grad()
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", TILED)
def test_tiles_equal_diffusers_tiles(name: str) -> None:
    latent_shape, tiles = TILED[name]
    config = replace(VAE, layers_per_block=1)
    vae = tiny_vae(config, seed=4)
    peer = diffusers_vae(vae)
    set_tiles(peer, (tiles.size, tiles.frames, tiles.overlap))
    latents = noise(1, config.latent_channels, *latent_shape)
    assert relative_error(vae.decode(latents, tiles), peer.decode(latents).sample) <= TOLERANCE
    video = noise(1, 3, *pixels_of(latent_shape)).clamp(-1, 1)
    assert relative_error(vae.encode(video, tiles).mean, peer.encode(video).latent_dist.mean) <= TOLERANCE

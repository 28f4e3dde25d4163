"""The lean blocks against the plain ones, and the lean VAE against the recorded reference."""

from __future__ import annotations

import pytest
import torch
from tiny import VAE, golden, golden_vae, randomise, relative_error, tiny_vae
from torch import Tensor, nn

from hyvideo_lib.vae import Tiles, lean, sweep, winograd
from hyvideo_lib.vae.blocks import ResnetBlock, Upsample, norm_silu_conv
from hyvideo_lib.vae.causal import CausalConv3d
from hyvideo_lib.vae.norms import TileNorm

BLOCKS = {
    "conv": lambda: CausalConv3d(8, 12),
    "conv down in space": lambda: CausalConv3d(8, 12, stride=(1, 2, 2)),
    "conv down": lambda: CausalConv3d(8, 12, stride=(2, 2, 2)),
    "resnet": lambda: ResnetBlock(8, 8, 4),
    "resnet that widens": lambda: ResnetBlock(8, 12, 4),
    "up in space": lambda: Upsample(8, (1, 2, 2)),
    "up": lambda: Upsample(8, (2, 2, 2)),
}
LENGTHS = [1, 2, 3, 5, 8]
TOLERANCE = 2e-6
"""Of the largest value, float32. One convolution with summed taps is off by some 5e-7, and a block has two of them."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 10**6], ids=["few frames at once", "all frames at once"])
def always(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lean at any size, with all it has."""
    monkeypatch.setattr(lean, "MIN_PIXELS", 0)
    monkeypatch.setattr(winograd, "MIN_PIXELS", 0)
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(sweep, "CPU_ELEMENTS", request.param)


def plain(block: nn.Module, x: Tensor) -> Tensor:
    """What training computes."""
    with torch.enable_grad():
        return block(x).detach()


@torch.no_grad()
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_lean_block_equals_the_plain_one(name: str, frames: int) -> None:
    block = BLOCKS[name]()
    randomise(block, 1)
    x = noise(2, 8, frames, 4, 6)
    kept = x.clone()
    assert relative_error(block(x), plain(block, x)) <= TOLERANCE
    assert torch.equal(x, kept)


@torch.no_grad()
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_that_are_widened_by_the_kernel_are_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card: one pass over memory in place of three."""
    block, x = BLOCKS["resnet"]().to(dtype), noise(1, 8, 5, 4, 6).to(dtype)
    expected = block(x)
    monkeypatch.setattr(lean, "CASTING", ("cpu",))
    assert torch.equal(block(x), expected)


@torch.no_grad()
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", BLOCKS)
def test_16_bits_differ_by_their_own_rounding(name: str) -> None:
    block = BLOCKS[name]().bfloat16()
    randomise(block, 1)
    block.bfloat16()
    x = noise(1, 8, 5, 4, 6).bfloat16()
    found = block(x)
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), plain(block, x).float()) <= 3e-2


@torch.no_grad()
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("case", "modes"), [(0, "nt"), (1, "ns"), (2, "n"), (3, "b")])
def test_the_lean_vae_equals_the_reference(case: int, modes: str) -> None:
    vae, io = golden_vae(), golden("vae_tiny.io")
    tiles = {"n": None, "t": Tiles(10**4 * 32, 16), "s": Tiles(32, 10**4 * 16), "b": Tiles(32, 16)}
    names = {"n": "none", "t": "t", "s": "s", "b": "st"}
    for mode in modes:
        name, tile = names[mode], tiles[mode]
        assert relative_error(vae.decode(io[f"dec{case}.z"], tile), io[f"dec{case}.{name}"]) <= 2e-5
        assert relative_error(vae.encode(io[f"enc{case}.x"], tile).mean, io[f"enc{case}.{name}.mean"]) <= 2e-5


class Copy(nn.Module):
    """In place of the attention's norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("changed", [1, 2, 4])
def test_later_frames_cannot_change_earlier_ones_under_fixed_statistics(
    changed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = torch.zeros(VAE.norm_groups, dtype=torch.float64)
    monkeypatch.setattr(lean, "group_statistics", lambda frames, groups, eps: (fixed, fixed + 1))
    vae = tiny_vae()
    for mid in (vae.encoder.mid_block, vae.decoder.mid_block):
        mid.attentions[0].group_norm = Copy()
    latents, video = noise(1, VAE.latent_channels, 5, 2, 2), noise(1, 3, 17, 16, 16)
    pairs = []
    for run, x, start, end in (
        (vae.decode, latents, changed, 4 * (changed - 1) + 1),
        (lambda x: vae.encode(x).mean, video, 4 * (changed - 1) + 1, changed),
    ):
        other = x.clone()
        other[:, :, start:] = 1.0
        pairs.append((run(x), run(other), end))
    for before, after, end in pairs:
        assert torch.equal(after[:, :, :end], before[:, :, :end])
        assert not torch.equal(after[:, :, end:], before[:, :, end:])


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_statistics_of_a_long_video_are_those_of_float64(offset: float) -> None:
    frames = noise(7, 6, 16, 16) + offset
    mean, scale = lean.group_statistics(frames, 3, 1e-6)
    groups = frames.double().unflatten(1, (3, 2))
    variance, expected = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
    assert (mean - expected).abs().max() <= 2e-7 * max(offset, 1)
    assert (scale * (variance + 1e-6).sqrt() - 1).abs().max() <= 1e-6


@torch.no_grad()
@pytest.mark.usefixtures("always")
def test_a_norm_before_a_convolution_equals_the_plain_one() -> None:
    norm, conv = TileNorm(2, 8, 1e-6), CausalConv3d(8, 3)
    randomise(norm, 1)
    randomise(conv, 2)
    x = noise(2, 8, 3, 4, 5)
    with torch.enable_grad():
        expected = norm_silu_conv(norm, conv, x).detach()
    assert relative_error(norm_silu_conv(norm, conv, x), expected) <= TOLERANCE


def test_training_and_thumbnails_take_the_plain_form() -> None:
    large = torch.empty(1, 1, 4, 16, 16)
    assert not lean.suits(large)
    with torch.no_grad():
        assert lean.suits(large)
        assert not lean.suits(large[:, :, :3])


@pytest.mark.parametrize("form", ["pixels", "moments"])
def test_gradients_flow_as_before(form: str) -> None:
    vae = tiny_vae()
    shape = (1, VAE.latent_channels, 2, 2, 2) if form == "pixels" else (1, 3, 5, 16, 16)
    x = noise(*shape).requires_grad_()
    getattr(vae, form)(x).square().mean().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0

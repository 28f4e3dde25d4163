from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from tiny import VAE, difference, relative_error, tiny_vae
from torch import Tensor

from hyvideo_lib.checkpoint import load_vae
from hyvideo_lib.demo import assets
from hyvideo_lib.demo.world import SCENES, draw_clips
from hyvideo_lib.errors import Interrupted
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.vae import CausalVideoVAE, Tiles, lean, model
from hyvideo_lib.vae.norms import TileNorm, note_statistics, using
from hyvideo_lib.vae.tiling import Axis, shrink

TILES = Tiles(32, 16, shared_norms=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_norm() -> TileNorm:
    norm = TileNorm(2, 6, 1e-6)
    norm.weight.data, norm.bias.data = 1 + noise(6), noise(6, seed=1)
    return norm.requires_grad_(False)


# One norm


def test_by_itself_it_is_a_group_norm():
    norm, x = a_norm(), noise(2, 6, 3, 4, 5)
    assert torch.equal(norm(x), F.group_norm(x, 2, norm.weight, norm.bias, 1e-6))


def test_with_the_statistics_of_another_video_a_part_of_it_is_normed_as_within_it():
    norm, whole = a_norm(), 3 + 2 * noise(1, 6, 3, 4, 5)
    expected = norm(whole)
    with using(note_statistics(norm, lambda: norm(whole))):
        for part in (slice(0, 1), slice(1, 3)):
            assert relative_error(norm(whole[:, :, part]), expected[:, :, part]) <= 1e-6
        assert norm(whole.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(norm(whole[:, :, :1]), F.group_norm(whole[:, :, :1], 2, norm.weight, norm.bias, 1e-6))


@torch.no_grad()
def test_the_lean_form_takes_them_as_well():
    norm, whole = a_norm(), 3 + 2 * noise(1, 6, 3, 4, 5)
    expected = F.silu(norm(whole))
    with using(note_statistics(norm, lambda: norm(whole))):
        frames = whole[0, :, :1].transpose(0, 1)
        found = torch.empty_like(frames)
        lean.norm_silu(norm, frames)(frames, found)
        assert relative_error(found.transpose(0, 1), expected[0, :, :1]) <= 1e-6


def test_an_error_in_the_block_or_in_the_first_pass_leaves_no_trace():
    norm, x = a_norm(), noise(1, 6, 1, 4, 5)

    def fail() -> None:
        norm(x)
        raise Interrupted("stop")

    for first_pass in (fail, lambda: norm(x)):
        with pytest.raises(Interrupted), using(note_statistics(norm, first_pass)):
            raise Interrupted("stop")
        assert norm.given is norm.notes is None
        assert torch.equal(norm(2 * x + 1), F.group_norm(2 * x + 1, 2, norm.weight, norm.bias, 1e-6))


# The small copy


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((5, 90, 160), (5, 18, 32)), ((33, 32, 20), (17, 32, 20)), ((33, 64, 64), (17, 32, 32)), ((4, 1, 64), (4, 1, 32))],
)
def test_the_copy_fits_into_a_tile_and_keeps_its_proportions(shape, wanted):
    small = shrink(noise(1, 2, *shape), Axis.of(16, 0.25), Axis.of(32, 0.25))
    assert tuple(small.shape[2:]) == wanted


def test_the_copys_frames_are_the_videos_and_its_pixels_are_means():
    x = noise(1, 2, 9, 8, 8)
    small = shrink(x, Axis.of(4, 0.25), Axis.of(4, 0.25))
    assert difference(small, F.avg_pool3d(x[:, :, [0, 2, 4, 6, 8]], (1, 2, 2))) <= 1e-6


# The whole VAE


@pytest.fixture(scope="module")
def vae() -> CausalVideoVAE:
    return tiny_vae()


def a_latent(frames: int, height: int, width: int) -> Tensor:
    """Smooth, as real ones are: another mean on the left than on the right."""
    slope = torch.linspace(-2, 2, width).view(1, 1, 1, 1, width)
    return 0.3 * noise(1, VAE.latent_channels, frames, height, width) + slope


def test_with_the_statistics_of_the_whole_tiles_come_closer_to_it(vae, monkeypatch):
    """Without the attention, which sees a tile alone as well, only what lies beyond a tile's edge is left to differ."""
    monkeypatch.setattr(model, "shrink", lambda x, *_: x)
    vae, latents = deepcopy(vae), a_latent(3, 8, 8)
    for parameter in vae.decoder.mid_block.attentions[0].to_out.parameters():
        parameter.data.zero_()
    whole = vae.decode(latents)
    own, shared = (
        (vae.decode(latents, Tiles(32, 16, shared_norms=flag)) - whole).square().mean() for flag in (False, True)
    )
    assert shared < 0.8 * own


def test_a_trained_decoder_comes_closer_with_those_of_a_small_copy():
    """The demo's, on a drawn clip: by 3 dB here."""
    vae = load_vae(assets.VAE)
    clip, _ = draw_clips(SCENES[len(SCENES) // 4 :][:1], generator=torch.Generator().manual_seed(0))
    latents = vae.encode(clip).mean
    whole = vae.decode(latents)
    own, shared = (
        (vae.decode(latents, Tiles(32, 64, shared_norms=flag)) - whole).square().mean() for flag in (False, True)
    )
    assert shared < own


@pytest.mark.parametrize("shape", [(3, 8, 8), (7, 4, 4), (7, 8, 6)])
def test_spans_are_the_whole_with_shared_norms_too(vae, shape):
    latents = a_latent(*shape)
    found = vae.decode(latents, TILES)
    assert torch.equal(torch.cat(list(vae.decode_spans(latents, TILES)), dim=2), found)
    assert not torch.equal(found, vae.decode(latents, Tiles(32, 16)))
    assert all(norm.given is None for norm in vae.modules() if isinstance(norm, TileNorm))


@pytest.mark.parametrize("tiles", [None, Tiles(32, 16), TILES])
def test_a_video_that_is_read_to_its_half_shares_nothing_with_others(vae, tiles):
    """Also where its norms are NaN, which would make the others NaN."""
    first, other = a_latent(7, 8, 6), a_latent(3, 6, 8)
    expected = vae.decode(first, TILES), vae.decode(other, tiles)
    broken, spans = vae.decode_spans(first * torch.nan, TILES), vae.decode_spans(first, TILES)
    next(broken)
    begun = next(spans)
    assert torch.equal(vae.decode(other, tiles), expected[1])
    assert torch.equal(torch.cat([begun, *spans], dim=2), expected[0])


def test_a_video_within_one_tile_keeps_its_own(vae):
    latents = a_latent(4, 4, 4)
    assert torch.equal(vae.decode(latents, TILES), vae.decode(latents))


def test_every_video_of_a_batch_has_statistics_of_its_own(vae):
    latents = torch.cat([a_latent(3, 8, 8), 2 * a_latent(3, 8, 8) + 1])
    both = vae.decode(latents, TILES)
    assert torch.equal(both, torch.cat([vae.decode(item, TILES) for item in latents.split(1)]))


def test_encoding_keeps_each_tiles_own(vae):
    video = torch.linspace(-1, 1, 64).expand(1, 3, 21, 64, 64).contiguous()
    assert torch.equal(vae.encode(video, TILES).mean, vae.encode(video, Tiles(32, 16)).mean)


def test_a_cancelled_decode_forgets_them(vae):
    host = HeadlessHost(on_step=lambda done, _: host.cancel() if done == 2 else None)
    with pytest.raises(Interrupted):
        vae.decode(a_latent(3, 8, 8), TILES, host)
    assert all(norm.given is None for norm in vae.modules() if isinstance(norm, TileNorm))

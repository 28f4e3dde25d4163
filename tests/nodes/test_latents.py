from __future__ import annotations

import pytest
import torch
from graph import run, validate


def clip(frames: int = 5, height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    """Frames [F, H, W, C] in 0..1: a light square that moves over a dark ground."""
    video = torch.full((frames, height, width, channels), 0.1)
    for i in range(frames):
        video[i, 8:20, 4 + i : 16 + i] = 0.8
    return video


# Empty latents


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((64, 32, 17, 1), (1, 16, 5, 4, 8)),
        ((16, 16, 1, 3), (3, 16, 1, 2, 2)),
        ((848, 480, 73, 1), (1, 16, 19, 60, 106)),
    ],
)
def test_empty_latents_have_the_size_of_the_video(pack, size, shape):
    width, height, frames, batch = size
    (latents,) = run(pack.nodes.latents.EmptyLatents, width=width, height=height, frames=frames, batch=batch).result
    assert latents["samples"].shape == shape
    assert not latents["samples"].any()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"width": 100}, "width is 100, but must be a multiple of 16 pixels. Nearest: 96 or 112."),
        ({"height": 8}, "height is 8"),
        ({"width": 8192}, "width is 8192, but must be at most 4096."),
        ({"frames": 16}, "frames is 16, but must be 4k + 1"),
        ({"frames": 0}, "frames is 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_the_run(pack, inputs, said):
    assert said in validate(pack.nodes.latents.EmptyLatents, **inputs)


def test_frames_are_checked_though_the_size_comes_over_a_wire(pack):
    node = pack.nodes.latents.EmptyLatents
    assert validate(node, width=None, height=None) is True
    assert "frames is 16" in validate(node, width=None, height=None, frames=16)


@pytest.mark.parametrize(("inputs", "code"), [({"width": 100}, "invalid_size"), ({"frames": 16}, "invalid_frames")])
def test_sizes_are_checked_again_in_the_run(pack, inputs, code):
    with pytest.raises(pack.hyvideo_lib.errors.BadInput, match=rf"\[{code}\]$"):
        run(pack.nodes.latents.EmptyLatents, **inputs)


# Sizes by name


def test_every_named_size_can_be_used(pack):
    for preset, size in pack.nodes.latents.PRESETS.items():
        assert validate(pack.nodes.latents.Size, preset=preset) is True
        assert run(pack.nodes.latents.Size, preset=preset, frames=129).result == (*size, 129)
        assert validate(pack.nodes.latents.EmptyLatents, width=size[0], height=size[1]) is True


@pytest.mark.parametrize("height_width", [(720, 1280), (1280, 720), (500, 500), (100, 3000)])
def test_an_image_gives_the_size_nearest_in_shape(pack, height_width):
    image = torch.zeros(1, *height_width, 3)
    for preset, base in pack.nodes.latents.IMAGE_PRESETS.items():
        width, height, frames = run(pack.nodes.latents.Size, preset=preset, frames=5, image=image).result
        assert (height, width) == pack.hyvideo_lib.buckets.closest_bucket(*height_width, base)
        assert frames == 5
        assert (width > height) == (height_width[1] > height_width[0])


def test_a_size_by_an_image_needs_the_image(pack):
    assert "no image is connected" in validate(pack.nodes.latents.Size, preset="from the image, 540p")
    assert validate(pack.nodes.latents.Size, preset="from the image, 540p", image=None) is True
    with pytest.raises(pack.hyvideo_lib.errors.InvalidSetting, match=r"no image is connected.*\[invalid_setting\]$"):
        run(pack.nodes.latents.Size, preset="from the image, 540p")


def test_unknown_sizes_are_refused_before_the_run(pack):
    assert "preset is 'big'" in validate(pack.nodes.latents.Size, preset="big")
    assert "frames is 4" in validate(pack.nodes.latents.Size, frames=4)
    assert validate(pack.nodes.latents.Size, preset=None, frames=None) is True


# Encoding


def test_a_video_becomes_the_mean_of_its_posterior(pack, vae):
    frames = clip()
    (latents,) = run(pack.nodes.latents.EncodeVideo, vae=vae, frames=frames).result
    expected = vae.vae.encode((frames * 2 - 1).permute(3, 0, 1, 2)[None]).mean
    assert torch.equal(latents["samples"], expected)
    assert latents["samples"].shape == (1, 16, 2, 4, 4)
    assert latents["samples"].dtype == torch.float32


def test_a_draw_depends_on_the_seed_alone(pack, vae):
    def draw(seed: int, sampled: bool = True) -> torch.Tensor:
        node = pack.nodes.latents.EncodeVideo
        return run(node, vae=vae, frames=clip(1), sampled=sampled, seed=seed)[0]["samples"]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(draw(1, sampled=False), draw(2, sampled=False))


def test_transparency_is_left_out(pack, vae):
    frames = clip(1, channels=4)
    both = [run(pack.nodes.latents.EncodeVideo, vae=vae, frames=f)[0]["samples"] for f in (frames, frames[..., :3])]
    assert torch.equal(*both)


@pytest.mark.parametrize(
    ("shape", "code"), [((4, 32, 32), "invalid_frames"), ((5, 40, 32), "invalid_size"), ((5, 32, 40), "invalid_size")]
)
def test_frames_that_do_not_fit_are_refused(pack, vae, shape, code):
    with pytest.raises(pack.hyvideo_lib.errors.BadInput, match=rf"\[{code}\]$"):
        run(pack.nodes.latents.EncodeVideo, vae=vae, frames=clip(*shape))


def test_encoding_takes_the_tiles_it_is_told(pack, vae):
    frames = clip(1, 64, 64)
    custom = {"tiles": "custom", "tile_size": 32, "tile_frames": 16}
    (tiled,) = run(pack.nodes.latents.EncodeVideo, vae=vae, frames=frames, **custom).result
    video = (frames * 2 - 1).permute(3, 0, 1, 2)[None]
    assert torch.equal(tiled["samples"], vae.vae.encode(video, pack.hyvideo_lib.vae.Tiles(32, 16)).mean)


def test_impossible_tiles_are_refused_before_the_run_where_they_count(pack):
    node = pack.nodes.latents.EncodeVideo
    assert "multiples of 32" in validate(node, tiles="custom", tile_size=40)
    assert validate(node, tiles="reference", tile_size=40) is True
    assert "tile_size is 16" in validate(node, tiles="reference", tile_size=16)


def test_the_node_shows_a_report_of_the_encoding(pack, vae, texts):
    run(pack.nodes.latents.EncodeVideo, vae=vae, frames=clip(1, 64, 64), tiles="custom", tile_size=32, tile_frames=16)
    assert "RAM peak" in texts()[-1]
    assert texts()[-1].endswith(", tiles 32 x 32 x 16, overlap 0.25")

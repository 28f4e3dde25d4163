from __future__ import annotations

import weakref

import pytest
import torch
from tiny import VAE, difference, golden, golden_vae, layout, manifest, relative_error, tiny_vae
from torch import Tensor, nn

from hyvideo_lib.errors import Interrupted, InvalidFrames, InvalidSetting, InvalidSize
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.vae import CausalVideoVAE, Tiles, VAEConfig, lean
from hyvideo_lib.vae.model import Cuts, _count

CASE = manifest()["vae_tiny"]
IO = golden("vae_tiny.io")
GOLDEN_BAR = 2e-5
FAR = 1 << 20
MODES = {"none": None, "s": Tiles(32, FAR), "t": Tiles(FAR, 16), "st": Tiles(32, 16)}
"""How each recorded mode is said to ours: an axis that was not tiled has tiles larger than any video."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_latents(frames: int = 5, height: int = 3, width: int = 4, batch: int = 1) -> Tensor:
    return noise(batch, VAE.latent_channels, frames, height, width)


def make_video(frames: int = 17, height: int = 24, width: int = 32, batch: int = 1) -> Tensor:
    return noise(batch, 3, frames, height, width).clamp(-1, 1)


def recorded(way: str) -> list[tuple[int, str]]:
    return [(index, mode) for index, row in enumerate(CASE[way]) for mode in row["modes"]]


# Against the recorded reference


@pytest.mark.parametrize(("index", "mode"), recorded("decode"))
def test_every_recorded_decode_is_reproduced(index: int, mode: str) -> None:
    found = golden_vae().decode(IO[f"dec{index}.z"], MODES[mode])
    assert relative_error(found, IO[f"dec{index}.{mode}"]) <= GOLDEN_BAR


@pytest.mark.parametrize(("index", "mode"), recorded("encode"))
def test_every_recorded_encode_is_reproduced(index: int, mode: str) -> None:
    found = golden_vae().encode(IO[f"enc{index}.x"], MODES[mode])
    assert relative_error(found.mean, IO[f"enc{index}.{mode}.mean"]) <= GOLDEN_BAR
    assert relative_error(found.logvar, IO[f"enc{index}.{mode}.logvar"]) <= GOLDEN_BAR


def test_every_recorded_activation_of_the_decoder_is_reproduced() -> None:
    vae = golden_vae()
    stages: dict[str, Tensor] = {}
    modules = {"conv_in": vae.decoder.conv_in, "mid": vae.decoder.mid_block, "out": vae.decoder}
    modules |= {f"up{level}": block.layers()[-1] for level, block in enumerate(vae.decoder.up_blocks)}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: stages.update({name: output.clone()}))
    vae.decode(IO["act.dec.z"])
    expected = {name.removeprefix("act.dec."): x for name, x in IO.items() if name.startswith("act.dec.")}
    assert set(stages) == set(expected) - {"z"}
    for name, found in stages.items():
        assert relative_error(found, expected[name]) <= GOLDEN_BAR, name


# Shapes


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (5, 2), (17, 5)])
def test_sizes_shrink_and_grow_by_eight_in_space_and_four_in_time(frames: int, latent_frames: int) -> None:
    vae = tiny_vae()
    posterior = vae.encode(make_video(frames))
    assert posterior.mean.shape == posterior.logvar.shape == (1, 4, latent_frames, 3, 4)
    assert vae.decode(posterior.mean).shape == (1, 3, frames, 24, 32)


def test_an_image_is_one_frame_and_never_tiled_in_time() -> None:
    vae, tiles = tiny_vae(), Tiles(FAR, 16)
    latents, image = make_latents(1), make_video(1)
    assert torch.equal(vae.decode(latents, tiles), vae.decode(latents))
    assert torch.equal(vae.encode(image, tiles).mean, vae.encode(image).mean)


@pytest.mark.parametrize("frames", [2, 3, 4, 6, 16])
def test_frames_that_are_not_4k_plus_1_are_refused(frames: int) -> None:
    with pytest.raises(InvalidFrames, match=f"frames is {frames}, "):
        tiny_vae().encode(make_video(frames))


@pytest.mark.parametrize(("height", "width"), [(20, 24), (24, 25)])
def test_pixels_that_are_no_multiple_of_8_are_refused(height: int, width: int) -> None:
    with pytest.raises(InvalidSize, match=f"{width} x {height} pixels"):
        tiny_vae().encode(make_video(1, height, width))


@pytest.mark.parametrize("shape", [(1, 16, 2, 3, 3), (4, 2, 3, 3), (1, 4, 0, 3, 3)])
def test_latents_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match=r"must be \[B, 4, T, H, W\]"):
        tiny_vae().decode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (1, 4, 1, 16, 16)])
def test_video_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match=r"must be \[B, 3, F, H, W\]"):
        tiny_vae().encode(torch.zeros(shape))


# What depends on what; of the plain blocks, `test_lean.py` has the lean ones


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain blocks at any size: only they can do without norms."""
    monkeypatch.setattr(lean, "MIN_PIXELS", 10**9)


class Copy(nn.Module):
    """In place of a norm; a fresh tensor, as a norm's result is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def without_norms(vae: CausalVideoVAE) -> CausalVideoVAE:
    """The same VAE without the one part that looks ahead: the group norms, whose statistics span all frames."""
    for module in list(vae.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, Copy())
    return vae


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("changed", [1, 5, 9, 12, 16])
def test_later_frames_cannot_change_earlier_latents_before_the_norms(changed: int) -> None:
    vae, video = without_norms(tiny_vae()), make_video()
    other = video.clone()
    other[:, :, changed:] = 1.0
    before = (changed + 3) // 4  # latent k stands on the frames up to 4k
    found, after = vae.encode(video).mean, vae.encode(other).mean
    assert torch.equal(after[:, :, :before], found[:, :, :before])
    assert not torch.equal(after[:, :, before:], found[:, :, before:])


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("changed", [1, 2, 4])
def test_later_latents_cannot_change_earlier_frames_before_the_norms(changed: int) -> None:
    vae, latents = without_norms(tiny_vae()), make_latents()
    other = latents.clone()
    other[:, :, changed:] = 1.0
    before = 4 * (changed - 1) + 1
    found, after = vae.decode(latents), vae.decode(other)
    assert torch.equal(after[:, :, :before], found[:, :, :before])
    assert not torch.equal(after[:, :, before:], found[:, :, before:])


@pytest.mark.usefixtures("plain")
def test_the_first_frame_stands_alone_before_the_norms() -> None:
    vae, latents, video = without_norms(tiny_vae()), make_latents(), make_video()
    assert relative_error(vae.decode(latents[:, :, :1]), vae.decode(latents)[:, :, :1]) <= 1e-5
    assert relative_error(vae.encode(video[:, :, :1]).mean, vae.encode(video).mean[:, :, :1]) <= 1e-5


def test_the_norms_do_look_ahead() -> None:
    vae, latents = tiny_vae(), make_latents()
    other = latents.clone()
    other[:, :, -1] = 1.0
    assert not torch.equal(vae.decode(other)[:, :, 0], vae.decode(latents)[:, :, 0])


@pytest.mark.parametrize("tiles", [None, Tiles(32, 16)], ids=["whole", "tiled"])
def test_every_item_of_a_batch_is_treated_alone(tiles: Tiles | None) -> None:
    vae = tiny_vae()
    latents, video = make_latents(6, 5, 3, batch=2), make_video(21, 40, 24, batch=2)
    decoded, encoded = vae.decode(latents, tiles), vae.encode(video, tiles)
    for item in (slice(0, 1), slice(1, 2)):
        assert torch.equal(vae.decode(latents[item], tiles), decoded[item])
        assert torch.equal(vae.encode(video[item], tiles).mean, encoded.mean[item])
        assert torch.equal(vae.encode(video[item], tiles).logvar, encoded.logvar[item])


@pytest.mark.parametrize("tiles", [None, Tiles(32, 16)], ids=["whole", "tiled"])
def test_the_input_is_left_as_it_was_and_no_gradient_is_kept(tiles: Tiles | None) -> None:
    vae = tiny_vae()
    latents, video = make_latents(6, 5, 3), make_video(21, 40, 24)
    before = latents.clone(), video.clone()
    decoded, encoded = vae.decode(latents, tiles), vae.encode(video, tiles)
    assert torch.equal(latents, before[0])
    assert torch.equal(video, before[1])
    assert not decoded.requires_grad
    assert not encoded.mean.requires_grad


def test_training_passes_have_gradients_and_the_numbers_of_inference() -> None:
    vae, latents, video = tiny_vae(), make_latents(2), make_video(5)
    pixels, moments = vae.pixels(latents), vae.moments(video)
    # Other kernels run under gradients; some thirty convolutions in a row make 1.01e-6 of it on some processors.
    assert relative_error(pixels, vae.decode(latents)) <= 3e-6
    assert relative_error(moments.chunk(2, dim=1)[0], vae.encode(video).mean) <= 3e-6
    (pixels.square().mean() + moments.square().mean()).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# Tiles


@pytest.mark.parametrize("tiles", [Tiles(32, 16), Tiles(64, 16)])
def test_a_video_within_one_tile_is_not_tiled(tiles: Tiles) -> None:
    vae, latents, video = tiny_vae(), make_latents(4, 4, 3), make_video(13, 32, 24)
    assert torch.equal(vae.decode(latents, tiles), vae.decode(latents))
    assert torch.equal(vae.encode(video, tiles).mean, vae.encode(video).mean)


def test_the_tile_size_is_part_of_the_result() -> None:
    vae, latents = tiny_vae(), make_latents(6, 6, 6)
    whole = vae.decode(latents)
    for tiles in (Tiles(32, FAR), Tiles(FAR, 16), Tiles(32, 16)):
        assert vae.decode(latents, tiles).shape == whole.shape
        assert difference(vae.decode(latents, tiles), whole) > 1e-3


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((33, 90, 160), 84), ((33, 68, 120), 45), ((1, 90, 160), 28), ((5, 30, 30), 1), ((1, 33, 30), 4)],
)
def test_known_sizes_take_the_reference_number_of_tiles(size: tuple[int, int, int], tiles: int) -> None:
    time, space = Tiles().time, Tiles().space
    assert _count(torch.Size(size), Cuts((time, time * 4), (space, space * 8))) == tiles
    frames, height, width = size
    pixels = torch.Size((4 * frames - 3, 8 * height, 8 * width))
    assert _count(pixels, Cuts((time * 4, time), (space * 8, space))) == tiles


@pytest.mark.parametrize("latent_shape", [(3, 3, 3), (7, 3, 3), (3, 5, 3), (4, 7, 9), (5, 7, 4), (13, 5, 5)])
@pytest.mark.parametrize("mode", MODES)
def test_progress_counts_every_tile_of_every_item_up_to_the_total(
    latent_shape: tuple[int, int, int], mode: str
) -> None:
    vae = tiny_vae()
    latents = make_latents(*latent_shape, batch=2)
    frames, height, width = latent_shape
    for run in (
        lambda host: vae.decode(latents, MODES[mode], host),
        lambda host: vae.encode(make_video(4 * frames - 3, 8 * height, 8 * width, batch=2), MODES[mode], host),
    ):
        steps: list[tuple[int, int]] = []
        run(HeadlessHost(on_step=lambda done, total, steps=steps: steps.append((done, total))))
        assert steps == [(done, len(steps)) for done in range(1, len(steps) + 1)]
        assert len(steps) >= 2


# Spans


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("latent_frames", [1, 4, 5, 7, 13])
def test_the_spans_are_the_decoded_video_bit_for_bit(latent_frames: int, mode: str) -> None:
    vae, latents = tiny_vae(), make_latents(latent_frames, 5, 3)
    spans = list(vae.decode_spans(latents, MODES[mode]))
    assert torch.equal(torch.cat(spans, dim=2), vae.decode(latents, MODES[mode]))
    in_time = "t" in mode and latent_frames > 4
    lengths = [13, *[12] * ((latent_frames - 5) // 3)] if in_time else [4 * latent_frames - 3]
    assert [span.shape[2] for span in spans][: len(lengths)] == lengths
    assert not any(span.requires_grad for span in spans)


def test_a_span_is_there_before_the_next_is_begun_and_nobody_holds_on_to_it() -> None:
    steps: list[int] = []
    host = HeadlessHost(on_step=lambda done, _: steps.append(done))
    spans = tiny_vae().decode_spans(make_latents(13, 5, 3), Tiles(32, 16), host)
    given: list[weakref.ref[torch.UntypedStorage]] = []
    for number, span in enumerate(spans, start=1):
        assert steps == list(range(1, 2 * number + 1))  # two tiles each
        assert not any(storage() for storage in given)
        given.append(weakref.ref(span.untyped_storage()))
        del span
    assert len(given) == 4


def test_a_stream_that_is_cancelled_has_given_what_was_done() -> None:
    host = HeadlessHost(on_step=lambda done, _: host.cancel() if done == 3 else None)
    spans = tiny_vae().decode_spans(make_latents(13, 5, 3), Tiles(32, 16), host)
    assert next(spans).shape[2] == 13
    with pytest.raises(Interrupted):
        next(spans)


def test_spans_are_of_one_video() -> None:
    with pytest.raises(InvalidSetting, match="of one video"):
        next(tiny_vae().decode_spans(make_latents(batch=2)))
    with pytest.raises(InvalidSetting, match=r"must be \[B, 4, T, H, W\]"):
        next(tiny_vae().decode_spans(torch.zeros(1, 16, 2, 3, 3)))


class Stopped(Exception):  # noqa: N818
    """What another host may raise: nothing of ours."""


class StoppingHost(HeadlessHost):
    def __init__(self, stop_at: int) -> None:
        super().__init__(on_step=lambda done, _: self.done.append(done))
        self.done: list[int] = []
        self.checks, self.stop_at = 0, stop_at

    def check_interrupt(self) -> None:
        super().check_interrupt()
        self.checks += 1
        if self.checks == self.stop_at:
            raise Stopped


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_the_host_is_asked_before_every_tile_and_what_it_raises_passes_through(stop_at: int) -> None:
    vae = tiny_vae()
    latents, video = make_latents(6, 5, 3), make_video(21, 40, 24)
    for run in (vae.decode, vae.encode):
        host = StoppingHost(stop_at)
        with pytest.raises(Stopped):
            run(latents if run == vae.decode else video, Tiles(32, 16), host)
        assert host.done == list(range(1, stop_at))


def test_a_cancelled_host_stops_a_decode_in_the_middle() -> None:
    host = HeadlessHost(on_step=lambda done, _: host.cancel() if done == 2 else None)
    with pytest.raises(Interrupted):
        tiny_vae().decode(make_latents(6, 5, 3), Tiles(32, 16), host)


# Weights and dtypes


def test_the_released_checkpoint_fits_key_by_key() -> None:
    with torch.device("meta"):
        vae = CausalVideoVAE(VAEConfig())
    assert {key: list(tensor.shape) for key, tensor in vae.state_dict().items()} == layout("vae_tencent_diffusers")
    assert sum(parameter.numel() for parameter in vae.parameters()) == 246_478_803


def test_a_vae_built_without_memory_takes_its_weights_by_assignment() -> None:
    weights = tiny_vae().state_dict()
    with torch.device("meta"):
        vae = CausalVideoVAE(VAE)
    vae.load_state_dict(weights, strict=True, assign=True)
    assert not list(vae.named_buffers())
    latents = make_latents(2)
    assert torch.equal(vae.decode(latents), tiny_vae().decode(latents))


@pytest.mark.parametrize("tiles", [None, Tiles(32, 16)], ids=["whole", "tiled"])
def test_the_dtype_is_the_vaes_whatever_comes_in(tiles: Tiles | None) -> None:
    latents, video = make_latents(5, 5, 3), make_video(17, 40, 24)
    exact, rounding = tiny_vae(), tiny_vae().bfloat16()
    for given in (latents, latents.double()):
        assert rounding.decode(given, tiles).dtype == torch.bfloat16
        assert exact.decode(given, tiles).dtype == torch.float32
    assert 0 < relative_error(rounding.decode(latents, tiles).float(), exact.decode(latents, tiles)) < 0.1
    assert 0 < relative_error(rounding.encode(video, tiles).mean.float(), exact.encode(video, tiles).mean) < 0.1


def test_the_scaling_is_left_to_the_caller() -> None:
    latents = make_latents(2)
    other = CausalVideoVAE(VAEConfig(VAE.block_channels, 1, VAE.norm_groups, VAE.latent_channels, scaling=3.0))
    other.load_state_dict(tiny_vae().state_dict())
    assert torch.equal(other.decode(latents), tiny_vae().decode(latents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_video_that_is_encoded_only_a_tile_is_where_the_vae_is(dtype):
    vae, seen = tiny_vae().to("meta", dtype), []
    vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vae.encode(torch.rand(1, 3, 37, 64, 64), Tiles(32, 16))
    assert {(tile.device.type, tile.dtype) for tile in seen} == {("meta", dtype)}
    assert all(tile.untyped_storage().nbytes() == tile.nbytes for tile in seen)

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from tiny import difference
from torch import Tensor

from hyvideo_lib.errors import Interrupted, InvalidSetting
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.vae import Tiles, TinyVAE, TinyVAEConfig, tiny

CONFIG = TinyVAEConfig((12, 8, 6, 4), latent_channels=5, scaling=0.5)


@pytest.fixture(scope="module")
def vae() -> TinyVAE:
    vae = TinyVAE(CONFIG)
    generator = torch.Generator().manual_seed(3)
    for parameter in vae.parameters():
        scale = 0.2 if parameter.ndim == 1 else 1.2 * parameter[0].numel() ** -0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return vae.requires_grad_(False)


@pytest.fixture
def frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "ELEMENTS", 1)


def make_latents(frames: int = 5, batch: int = 1) -> Tensor:
    return torch.randn(batch, 5, frames, 3, 4, generator=torch.Generator().manual_seed(0))


# Against the description, one frame at a time, from the weights alone

LEVELS = {3: 1, 9: 2, 15: 2}
"""Where each level's memory blocks begin, to the frames that it makes of one."""


def described(weights: dict[str, Tensor], latents: Tensor) -> Tensor:
    """[1, C, T, H, W], scaled, to [1, 3, 4T, 8H, 8W] in 0..1, before anything is dropped or clamped."""

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding)

    last: dict[int, Tensor] = {}
    queue = [(frame, 0) for frame in (3 * torch.tanh(latents / 3)).unbind(2)]
    frames = [(F.relu(conv(frame, "decoder.1")), 3) for frame, _ in queue]
    done: list[Tensor] = []

    def go_on(x: Tensor, level: int) -> None:
        for place in range(level, level + 3):
            before = last.get(place, torch.zeros_like(x))
            last[place] = x
            h = conv(torch.cat([x, before], 1), f"decoder.{place}.conv.0")
            h = conv(F.relu(h), f"decoder.{place}.conv.2")
            x = F.relu(conv(F.relu(h), f"decoder.{place}.conv.4") + x)
        grown = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"decoder.{level + 4}.conv", padding=0)
        for frame in grown.chunk(LEVELS[level], dim=1):
            following = conv(frame, f"decoder.{level + 5}")
            if level == 15:
                done.append(conv(F.relu(following), "decoder.22"))
            else:
                go_on(following, level + 6)

    for frame, level in frames:
        go_on(frame, level)
    return torch.stack(done, dim=2)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_it_computes_what_is_described(vae: TinyVAE, frames: int) -> None:
    latents = make_latents(frames)
    every = described(dict(vae.state_dict()), latents * 0.5)
    assert every.shape[2] == 4 * frames
    assert every.std() > 0.1
    wanted = every[:, :, 3:].clamp(0, 1) * 2 - 1
    assert difference(vae.decode(latents), wanted) <= 1e-5


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_sizes_grow_as_the_vaes_do(vae: TinyVAE, frames: int) -> None:
    video = vae.decode(make_latents(frames))
    assert video.shape == (1, 3, 4 * (frames - 1) + 1, 24, 32)
    assert video.min() >= -1
    assert video.max() <= 1


@pytest.mark.parametrize("changed", [1, 3, 4])
def test_later_latents_cannot_change_earlier_frames(vae: TinyVAE, changed: int) -> None:
    latents = make_latents()
    other = latents.clone()
    other[:, :, changed:] += 1
    before = 4 * (changed - 1) + 1
    found, after = vae.decode(latents), vae.decode(other)
    assert torch.equal(after[:, :, :before], found[:, :, :before])
    assert not torch.equal(after[:, :, before : before + 4], found[:, :, before : before + 4])


def test_the_past_is_remembered_for_more_than_a_frame(vae: TinyVAE) -> None:
    latents = make_latents()
    other = latents.clone()
    other[:, :, 0] += 1
    assert difference(vae.decode(latents)[:, :, 9:], vae.decode(other)[:, :, 9:]) > 0


# Spans


@pytest.mark.usefixtures("frame_by_frame")
def test_spans_know_their_past_and_are_the_whole(vae: TinyVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = make_latents()
    spans = list(vae.decode_spans(latents))
    assert [span.shape[2] for span in spans] == [1, 4, 4, 4, 4]
    monkeypatch.setattr(tiny, "ELEMENTS", 2**40)
    (whole,) = vae.decode_spans(latents)
    assert difference(torch.cat(spans, dim=2), whole) <= 1e-5  # the kernels sum in another order


def test_a_span_of_a_large_video_is_one_latent_frame_and_of_a_small_one_many() -> None:
    config = TinyVAEConfig()
    assert config.frames_at_once(720, 1280) == 1
    assert config.frames_at_once(64, 64) == 256
    assert config.block_channels == (64, 64, 128, 256)


@pytest.mark.usefixtures("frame_by_frame")
def test_nobody_holds_on_to_a_span_and_each_is_counted(vae: TinyVAE) -> None:
    steps: list[tuple[int, int]] = []
    given: list[weakref.ref[torch.UntypedStorage]] = []
    for span in vae.decode_spans(make_latents(), host=HeadlessHost(on_step=lambda *step: steps.append(step))):
        assert steps[-1] == (len(given) + 1, 5)
        assert not any(storage() for storage in given)
        given.append(weakref.ref(span.untyped_storage()))
        del span


@pytest.mark.usefixtures("frame_by_frame")
def test_it_can_be_cancelled_between_spans(vae: TinyVAE) -> None:
    host = HeadlessHost(on_step=lambda done, _: host.cancel() if done == 2 else None)
    with pytest.raises(Interrupted):
        vae.decode(make_latents(), host=host)


def test_every_video_of_a_batch_has_its_own_past(vae: TinyVAE) -> None:
    latents = make_latents(batch=2)
    both = vae.decode(latents)
    assert torch.equal(both, torch.cat([vae.decode(item) for item in latents.split(1)]))


def test_tiles_are_without_effect(vae: TinyVAE) -> None:
    assert torch.equal(vae.decode(make_latents(), Tiles(32, 16)), vae.decode(make_latents()))


def test_the_input_is_left_as_it_was(vae: TinyVAE) -> None:
    latents = make_latents()
    vae.decode(latents)
    assert torch.equal(latents, make_latents())


# What it refuses, and the released file


def test_it_does_not_encode(vae: TinyVAE) -> None:
    with pytest.raises(InvalidSetting, match="only decodes previews"):
        vae.encode(torch.zeros(1, 3, 5, 16, 16))


@pytest.mark.parametrize("shape", [(1, 16, 2, 3, 3), (5, 2, 3, 3), (1, 5, 0, 3, 3)])
def test_latents_of_another_shape_are_refused(vae: TinyVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match=r"must be \[B, 5, T, H, W\]"):
        vae.decode(torch.zeros(shape))


def test_the_released_files_names_and_shapes_are_its_own() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in TinyVAE(TinyVAEConfig()).state_dict().items()}
    known = {
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.1.bias": (256,),
        "decoder.3.conv.0.weight": (256, 512, 3, 3),
        "decoder.5.conv.4.bias": (256,),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.9.conv.2.weight": (128, 128, 3, 3),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.14.weight": (64, 128, 3, 3),
        "decoder.17.conv.0.weight": (64, 128, 3, 3),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.weight": (3, 64, 3, 3),
        "decoder.22.bias": (3,),
    }
    assert known.items() <= shapes.items()
    assert len(shapes) == 2 + 3 * (18 + 2) + 2

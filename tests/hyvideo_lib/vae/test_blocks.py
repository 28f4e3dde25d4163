from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import difference, randomise, relative_error
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hyvideo_lib.vae.blocks import (
    DownBlock,
    Downsample,
    FrameCausalAttention,
    MidBlock,
    ResnetBlock,
    UpBlock,
    Upsample,
)

CHANNELS, GROUPS = 8, 4


def make(module: nn.Module) -> nn.Module:
    randomise(module, 0)
    return module


def make_video(frames: int = 4, height: int = 3, width: int = 2, batch: int = 1, channels: int = CHANNELS) -> Tensor:
    return torch.randn(batch, channels, frames, height, width, generator=torch.Generator().manual_seed(1))


def make_every_block() -> list[nn.Module]:
    return [
        ResnetBlock(CHANNELS, CHANNELS, GROUPS),
        ResnetBlock(CHANNELS, 16, GROUPS),
        FrameCausalAttention(CHANNELS, GROUPS),
        MidBlock(CHANNELS, GROUPS),
        DownBlock(CHANNELS, 16, 2, GROUPS, (2, 2, 2)),
        DownBlock(CHANNELS, 16, 1, GROUPS, None),
        UpBlock(CHANNELS, 16, 2, GROUPS, (2, 2, 2)),
        UpBlock(CHANNELS, 16, 1, GROUPS, None),
    ]


class LargestTensor(TorchFunctionMode):
    """Remembers the most elements of any tensor that a torch function took or returned."""

    numel = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in (*args, *(kwargs or {}).values(), result):
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor):
                    self.numel = max(self.numel, tensor.numel())
        return result


# Attention


def masked_attention(block: FrameCausalAttention, x: Tensor) -> Tensor:
    """The description: a full softmax under a mask that hides later frames, in float64."""
    frames, per_frame = x.shape[2], x.shape[3] * x.shape[4]
    tokens = block.group_norm(x).flatten(2).transpose(1, 2).double()

    def linear(layer: nn.Linear, y: Tensor) -> Tensor:
        return y @ layer.weight.double().T + layer.bias.double()

    q, k, v = (linear(layer, tokens) for layer in (block.to_q, block.to_k, block.to_v))
    frame = torch.arange(frames).repeat_interleave(per_frame)
    hidden = frame[None, :] > frame[:, None]
    weights = (q @ k.transpose(1, 2) / x.shape[1] ** 0.5).masked_fill(hidden, float("-inf")).softmax(-1)
    out = linear(block.to_out[0], weights @ v)
    return (out.transpose(1, 2).reshape(x.shape) + x).float()


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 3, 2), (4, 3, 2), (5, 1, 1), (3, 4, 4)])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_is_a_softmax_under_a_frame_causal_mask(frames: int, height: int, width: int, batch: int) -> None:
    block = make(FrameCausalAttention(CHANNELS, GROUPS))
    x = make_video(frames, height, width, batch)
    expected = masked_attention(block, x)
    assert relative_error(block(x), expected) <= 1e-6
    with torch.no_grad():
        assert relative_error(block(x), expected) <= 1e-6


def test_later_frames_never_change_earlier_ones_but_earlier_ones_do_change_later_ones() -> None:
    block = make(FrameCausalAttention(CHANNELS, GROUPS))
    block.group_norm = nn.Identity()  # it spans all frames on purpose
    x = make_video()
    found = block(x)
    for changed in range(1, 4):
        other = x.clone()
        other[:, :, changed] = 9.0
        assert torch.equal(block(other)[:, :, :changed], found[:, :, :changed])
        assert not torch.equal(block(other)[:, :, changed:], found[:, :, changed:])


def test_no_square_of_all_tokens_is_ever_built() -> None:
    block = make(MidBlock(CHANNELS, GROUPS))
    frames, height, width = 12, 6, 6
    with torch.no_grad(), LargestTensor() as largest:
        block(make_video(frames, height, width))
    # Nothing is larger than the padded input of a convolution; the square of 432 tokens is 26 times that.
    assert 0 < largest.numel <= CHANNELS * (frames + 2) * (height + 2) * (width + 2)


# Residual blocks and levels


def test_a_residual_block_is_norm_silu_conv_twice_beside_a_shortcut() -> None:
    for out_channels in (CHANNELS, 16):
        block = make(ResnetBlock(CHANNELS, out_channels, GROUPS))
        x = make_video()
        h = block.conv1(F.silu(F.group_norm(x, GROUPS, block.norm1.weight, block.norm1.bias, 1e-6)))
        h = block.conv2(F.silu(F.group_norm(h, GROUPS, block.norm2.weight, block.norm2.bias, 1e-6)))
        shortcut = x if out_channels == CHANNELS else block.conv_shortcut(x)
        assert relative_error(block(x), h + shortcut) <= 1e-6
        assert hasattr(block, "conv_shortcut") is (out_channels != CHANNELS)


def test_norms_span_all_frames() -> None:
    block = make(ResnetBlock(CHANNELS, CHANNELS, GROUPS))
    x = make_video()
    other = x.clone()
    other[:, :, -1] = 9.0
    assert not torch.equal(block(other)[:, :, 0], block(x)[:, :, 0])


@pytest.mark.parametrize("block", make_every_block(), ids=lambda block: type(block).__name__)
def test_without_gradients_the_numbers_are_the_same_and_the_input_is_kept(block: nn.Module) -> None:
    make(block)
    x = make_video(batch=2)
    before = x.clone()
    plain = block(x).detach()
    with torch.no_grad():
        assert relative_error(block(x), plain) <= 1e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("block", make_every_block(), ids=lambda block: type(block).__name__)
def test_gradients_reach_every_parameter(block: nn.Module) -> None:
    make(block)
    block(make_video()).square().mean().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_levels_change_channels_once_and_size_at_the_end() -> None:
    down, up = DownBlock(8, 16, 2, GROUPS, (2, 2, 2)), UpBlock(8, 16, 3, GROUPS, (1, 2, 2))
    assert [hasattr(block, "conv_shortcut") for block in down.resnets] == [True, False]
    assert [hasattr(block, "conv_shortcut") for block in up.resnets] == [True, False, False]
    assert down(make_video(5, 4, 4)).shape == (1, 16, 3, 2, 2)
    assert up(make_video(5, 4, 4)).shape == (1, 16, 5, 8, 8)
    assert DownBlock(8, 8, 1, GROUPS, None)(make_video(5, 4, 4)).shape == (1, 8, 5, 4, 4)


# Size changes


@pytest.mark.parametrize(
    ("factors", "frames", "grown"), [((2, 2, 2), 1, 1), ((2, 2, 2), 2, 3), ((2, 2, 2), 5, 9), ((1, 2, 2), 5, 5)]
)
def test_growing_repeats_neighbours_but_keeps_the_first_frame_single(
    factors: tuple[int, int, int], frames: int, grown: int
) -> None:
    up = make(Upsample(CHANNELS, factors))
    x = make_video(frames)
    source = [0] + [t for t in range(1, frames) for _ in range(factors[0])]
    assert len(source) == grown
    repeated = torch.stack([x[:, :, t] for t in source], dim=2)
    repeated = repeated[:, :, :, [h // 2 for h in range(6)]][..., [w // 2 for w in range(4)]]
    assert difference(up(x), up.conv(repeated)) <= 1e-5


@pytest.mark.parametrize(("stride", "shape"), [((1, 2, 2), (5, 2, 3)), ((2, 2, 2), (3, 2, 3))])
def test_shrinking_is_a_strided_causal_convolution(stride: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    down = make(Downsample(CHANNELS, stride))
    x = make_video(5, 4, 6)
    assert down(x).shape[2:] == shape
    assert difference(down(x), down.conv(x)) == 0
    whole = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate"), down.conv.conv.weight, down.conv.conv.bias)
    assert difference(down(x), whole[:, :, :: stride[0], :: stride[1], :: stride[2]]) <= 1e-5

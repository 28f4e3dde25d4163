from __future__ import annotations

import pytest
import torch
from tiny import difference, randomise
from torch import Tensor

from hyvideo_lib.vae.causal import CausalConv3d

STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
SHAPE = (7, 4, 6)


def make(stride: tuple[int, int, int] = (1, 1, 1), kernel_size: int = 3) -> CausalConv3d:
    conv = CausalConv3d(2, 3, kernel_size, stride)
    randomise(conv, 0)
    return conv


def make_video(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))


def convolve(conv: CausalConv3d, x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The description: every output sums its neighbours, where frames before the first and pixels outside repeat."""
    frames, height, width = x.shape[2:]
    weight = conv.conv.weight
    side = weight.shape[-1] // 2
    rows = []
    for t in range(0, frames, stride[0]):
        for h in range(0, height, stride[1]):
            for w in range(0, width, stride[2]):
                total = conv.conv.bias
                for i, j, k in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape[2:])).tolist():
                    source = x[
                        0,
                        :,
                        max(t + i - (weight.shape[2] - 1), 0),
                        min(max(h + j - side, 0), height - 1),
                        min(max(w + k - side, 0), width - 1),
                    ]
                    total = total + weight[:, :, i, j, k] @ source
                rows.append(total)
    size = [-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True)]
    return torch.stack(rows, dim=-1).view(1, -1, *size)


@pytest.mark.parametrize("stride", STRIDES)
def test_the_convolution_is_what_its_description_says(stride: tuple[int, int, int]) -> None:
    conv, x = make(stride), make_video((3, 4, 5))
    assert difference(conv(x), convolve(conv, x, stride)) <= 1e-5


def test_a_kernel_of_one_pads_nothing() -> None:
    conv, x = make(kernel_size=1), make_video()
    assert conv(x).shape[2:] == SHAPE
    mixed = torch.einsum("bcthw,oc->bothw", x, conv.conv.weight[:, :, 0, 0, 0])
    assert difference(conv(x), mixed + conv.conv.bias.view(-1, 1, 1, 1)) <= 1e-6


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("changed", range(SHAPE[0]))
def test_a_later_frame_never_changes_an_earlier_one(stride: tuple[int, int, int], changed: int) -> None:
    conv, x = make(stride), make_video()
    other = x.clone()
    other[:, :, changed:] = 100.0
    before = -(-changed // stride[0])  # outputs that stand on frames up to `changed` - 1
    assert torch.equal(conv(other)[:, :, :before], conv(x)[:, :, :before])
    assert not torch.equal(conv(other)[:, :, before:], conv(x)[:, :, before:])


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9])
def test_time_is_halved_upwards(frames: int) -> None:
    assert make((2, 2, 2))(make_video((frames, 4, 4))).shape[2] == (frames + 1) // 2


def test_a_still_video_stays_still() -> None:
    conv = make()
    out = conv(make_video((1, 4, 4)).expand(-1, -1, 5, -1, -1))
    assert difference(out, out[:, :, :1].expand_as(out)) <= 1e-6


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_input_is_left_as_it_was(kernel_size: int) -> None:
    x = make_video()
    before = x.clone()
    with torch.no_grad():
        make(kernel_size=kernel_size)(x)
    assert torch.equal(x, before)

"""The sweep over time against the whole: any chunk length, stride and edge gives what one padded convolution gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyvideo_lib.vae import sweep, winograd
from hyvideo_lib.vae.stand_in import meta_stands_for

FRAME = 3 * 4 * 5
CHUNKS = [1, 2 * FRAME, 5 * FRAME, 1000 * FRAME]
"""Elements at once: two frames (the least), two again, four, all."""
LENGTHS = [1, 2, 3, 4, 6, 9]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(frames: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int, int], edges: sweep.Edges) -> Tensor:
    """The definition: pad with copies of the edges, and in time with the first frame; then convolve."""
    video = F.pad(frames.transpose(0, 1)[None], (*edges, 2, 0), mode="replicate")
    return F.conv3d(video, weight, bias, stride)[0].transpose(0, 1)


@pytest.fixture(params=CHUNKS)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sweep, "CPU_ELEMENTS", request.param)
    return int(request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("total", LENGTHS)
def test_a_swept_convolution_equals_the_whole_one(total: int, stride: tuple[int, int, int]) -> None:
    frames, weight, bias = noise(total, 3, 4, 5, seed=0), noise(2, 3, 3, 3, 3, seed=1), noise(2, seed=2)
    expected = whole(frames, weight, bias, stride, sweep.ALL_ROUND)
    out = torch.full_like(expected, torch.nan)
    sweep.causal_conv(frames, weight, bias, out, stride)
    assert (out - expected).abs().max() < 1e-12


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("edges", [(1, 0, 1, 0), (0, 1, 1, 0), (0, 1, 0, 1)])
def test_edges_are_padded_where_asked(edges: sweep.Edges) -> None:
    frames, weight, bias = noise(5, 3, 4, 5, seed=0), noise(2, 3, 3, 2, 2, seed=1), noise(2, seed=2)
    expected = whole(frames, weight, bias, (1, 1, 1), edges)
    out = torch.full_like(expected, torch.nan)
    sweep.causal_conv(frames, weight, bias, out, edges=edges)
    assert (out - expected).abs().max() < 1e-12


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("total", LENGTHS)
def test_pairs_of_frames_change_nothing(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_PIXELS", 1)
    frames, weight, bias = (
        part.float() for part in (noise(total, 3, 4, 5, seed=0), noise(2, 3, 3, 3, 3, seed=1), noise(2, seed=2))
    )
    expected = whole(frames, weight, bias, (1, 1, 1), sweep.ALL_ROUND)
    out = torch.full_like(expected, torch.nan)
    sweep.causal_conv(frames, weight, bias, out)
    assert (out - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("total", LENGTHS)
def test_the_result_may_overwrite_the_input(total: int) -> None:
    frames, weight, bias = noise(total, 3, 4, 5, seed=0), noise(3, 3, 3, 3, 3, seed=1), noise(3, seed=2)
    expected = whole(frames.relu(), weight, bias, (1, 1, 1), sweep.ALL_ROUND)
    sweep.causal_conv(frames, weight, bias, frames, prepare=lambda part, window: window.copy_(part.relu()))
    assert (frames - expected).abs().max() < 1e-12


@pytest.mark.parametrize("past", [1, 2])
@pytest.mark.parametrize("total", LENGTHS)
def test_windows_cover_every_frame_once_after_its_past(total: int, past: int, chunk: int) -> None:
    frames = noise(total, 3, 4, 5, seed=0)
    padded = F.pad(frames, sweep.ALL_ROUND, mode="replicate")
    covered = []
    for start, window in sweep.windows(frames, past, sweep.ALL_ROUND):
        before = 0 if start == 0 else past
        expected = [padded[max(t, 0)] for t in range(start - before, start - before + window.shape[0])]
        assert torch.equal(window, torch.stack(expected))
        covered += range(start, start + window.shape[0] - before)
        assert window.shape[0] - before <= max(2, chunk // FRAME)
    assert covered == list(range(total))


class Orders(TorchDispatchMode):
    """Whether the weights of 3D convolutions have their channels innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default and args[1].ndim == 5:
            self.seen.append(args[1].is_contiguous(memory_format=torch.channels_last_3d))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "is_innermost"), [("cpu", False), ("cuda", True)])
def test_only_away_from_a_cpu_the_weights_channels_are_innermost(device: str, is_innermost: bool) -> None:
    """A window does not tell its order, so the weight has to; a CPU's way stays as it was measured."""
    frames, weight = torch.empty(5, 4, 6, 6, device="meta"), torch.empty(8, 4, 3, 3, 3, device="meta")
    out = torch.empty(1, 8, 5, 6, 6, device="meta", memory_format=torch.channels_last_3d)
    with meta_stands_for(device), Orders() as orders:
        sweep.causal_conv(frames, weight, None, sweep.frames_of(out)[0])
    assert set(orders.seen) == {is_innermost}

"""Allocations counted without numbers, held to the same computation with numbers."""

import pytest
import torch
import torch.nn.functional as F

from hyvideo_lib.checkpoint.blueprint import build_meta_vae
from hyvideo_lib.geometry import latent_shape
from hyvideo_lib.memory.dry_run import AllocationCounter, convolution_copies, count_peak
from hyvideo_lib.pipeline.dry_run import decode_work, encode_work
from hyvideo_lib.vae import CausalVideoVAE, VAEConfig
from hyvideo_lib.video import frames_from_pixels

META = torch.device("meta")


def compute(x: torch.Tensor) -> torch.Tensor:
    a = x * 2
    b = a.view(-1)  # a view is nothing new
    c = b + 1
    del a, b
    return c.view_as(x).add_(1)


def test_the_peak_is_what_is_alive_at_once():
    x = torch.empty(1000, device=META)
    assert count_peak(lambda: compute(x)) == 8000
    assert count_peak(lambda: [x + i for i in range(5)]) == 20_000
    assert count_peak(lambda: [None for i in range(5) if (x + i) is None]) <= 8000
    assert count_peak(lambda: x.add_(1)) == 0


def test_numbers_change_nothing():
    x = torch.randn(1000)
    with torch.no_grad(), AllocationCounter() as counter:
        compute(x)
    assert counter.peak == 8000
    assert counter.level == 0


def test_attention_takes_its_result_and_no_table_of_pairs():
    q = torch.empty(1, 2, 500, 8, device=META)
    assert count_peak(lambda: F.scaled_dot_product_attention(q, q, q)) == q.nbytes


def test_a_spike_counts_on_top_of_what_is_there():
    counter = AllocationCounter()
    x = torch.empty(100, device=META)

    def call() -> torch.Tensor:
        y = x + 1
        counter.add_spike(1000)
        return y

    assert count_peak(call, counter) == 1400


def test_a_cpus_convolutions_count_the_librarys_copies():
    weight, flat = torch.empty(8, 128, 3, 3, 3, device=META), torch.empty(8, 128, 3, 3, device=META)
    x = torch.empty(1, 128, 8, 66, 66, device=META)
    out = torch.empty(1, 8, 6, 64, 64, device=META)
    innermost = x.contiguous(memory_format=torch.channels_last_3d)
    assert convolution_copies(x, weight, out) == x.nbytes + weight.nbytes
    assert convolution_copies(innermost, weight, out) == 2 * x.nbytes + weight.nbytes
    assert convolution_copies(innermost[:, :, 0], flat, out[:, :, 0]) == 2 * flat.nbytes
    small = x[:, :, :3, :8, :8].contiguous()
    assert convolution_copies(small, weight, out[..., :1, :6, :6].contiguous()) == 36 * 128 * 27 * 4
    assert convolution_copies(x, torch.empty(8, 128, 1, 1, 1, device=META), out) == 0
    wanted = F.conv3d(x, weight).nbytes
    assert count_peak(lambda: F.conv3d(x, weight)) == wanted
    assert count_peak(lambda: F.conv3d(x, weight), AllocationCounter(True)) == wanted + x.nbytes + weight.nbytes


def video(*shape: int, innermost: bool) -> torch.Tensor:
    x = torch.randn(*shape)
    order = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    return x.contiguous(memory_format=order) if innermost else x


KERNEL, FLAT = torch.randn(8, 64, 3, 3, 3), torch.randn(8, 64, 3, 3)
ORDERED = {
    "padding": (lambda x: F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate"), (1, 64, 6, 20, 20)),
    "group norm": (lambda x: F.group_norm(x, 4), (1, 64, 6, 20, 20)),
    "group norm of one item out of a sweep": (
        lambda x: F.group_norm(x[0].transpose(0, 1)[None], 4),
        (1, 6, 64, 20, 20),
    ),
    "large video": (lambda x: F.conv3d(x, KERNEL.to(x.device)), (1, 64, 18, 20, 20)),
    "small video": (lambda x: F.conv3d(x, KERNEL.to(x.device)), (1, 64, 4, 8, 8)),
    "two small videos": (lambda x: F.conv3d(x, KERNEL.to(x.device)), (2, 64, 4, 8, 8)),
    "frames": (lambda x: F.conv2d(x, FLAT.to(x.device)), (2, 64, 20, 20)),
    "frames with the weight innermost": (
        lambda x: F.conv2d(x, FLAT.to(x.device).contiguous(memory_format=torch.channels_last)),
        (2, 64, 20, 20),
    ),
}


@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("name", ORDERED)
def test_results_lie_in_memory_as_they_do_on_a_cpu(name, innermost):
    call, shape = ORDERED[name]
    x = video(*shape, innermost=innermost)
    found: list[tuple[int, ...]] = []
    with torch.no_grad():
        wanted = call(x).stride()
    count_peak(lambda: found.append(call(x.to("meta")).stride()), AllocationCounter(True))
    assert found == [wanted]


@pytest.mark.parametrize("size", [(5, 32, 32), (5, 64, 64)])
@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_a_small_video_is_counted_without_numbers_as_with_them(verb, size):
    config = VAEConfig((32, 64, 128, 128))
    vae, sketch = (make(config).requires_grad_(False).eval() for make in (CausalVideoVAE, build_meta_vae))
    frames, height, width = size
    given = torch.rand(1, 3, *size) if verb == "encode" else torch.randn(1, 16, *latent_shape(width, height, frames))
    work = encode_work if verb == "encode" else decode_work

    def call() -> None:
        if verb == "encode":
            vae.encode(given.clone())
        for span in vae.decode_spans(given) if verb == "decode" else ():
            frames_from_pixels(span[0])

    wanted = count_peak(call, AllocationCounter(True))
    assert work(sketch, size, None, is_cpu=True) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("work", [decode_work, encode_work])
def test_in_16_bits_the_vae_makes_no_wide_copy_of_a_whole_video(work):
    """The fullest moment is in a residual block: its input, and one tensor of its output."""
    config = VAEConfig()
    sketch = build_meta_vae(config).to(torch.bfloat16).eval()
    size = 65, 256, 256
    widest = 2 * config.block_channels[1] * 65 * 256 * 256
    assert work(sketch, size, None) < 1.75 * widest

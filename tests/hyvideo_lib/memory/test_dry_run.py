"""Allocations counted without numbers, held to the same computation with numbers."""

import torch
import torch.nn.functional as F

from hyvideo_lib.memory.dry_run import AllocationCounter, convolution_copies, count_peak

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


def test_a_cpus_padding_keeps_channels_innermost():
    x = torch.empty(1, 64, 6, 20, 20, device=META).contiguous(memory_format=torch.channels_last_3d)
    real = F.pad(torch.empty_like(x, device="cpu"), (1, 1, 1, 1, 2, 0), mode="replicate")
    with AllocationCounter(True):
        padded = F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")
    assert padded.stride() == real.stride()

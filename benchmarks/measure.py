"""Time and working memory of calls, side by side.

Time: the sides take turns (A B A B ...), one call a round, after a call each that is not timed.

Working memory: the peak of what PyTorch's allocators hand out during one more call, above the level before it. On CUDA
that is the allocator's own counter. On the CPU it is the running sum of the profiler's memory events, which see every
allocation, those inside operators and the copies that the convolution library asks PyTorch for included. The resident
set size is no measure for this: what malloc keeps after a first call hides most of a second one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.rows import Measurement, Options, Row, compared_rows

Side = Callable[[], Tensor]


@torch.no_grad()
def compare(sides: Mapping[str, Side], repeats: int, device: torch.device) -> tuple[dict[str, Measurement], float]:
    """Measure all sides of one case. Returns them and the largest relative difference between the first's output and
    another's, so that nobody is fast by being wrong."""
    memory: dict[str, int] = {}
    first: Tensor | None = None
    difference = 0.0
    for name, side in sides.items():
        memory[name], output = working_memory(side, device)
        if first is None:
            first = output.double()
        else:
            difference = max(difference, ((output.double() - first).abs().max() / first.abs().max()).item())
        del output
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(seconds_of(side, device))
    return {name: Measurement(seconds[name], memory[name]) for name in sides}, difference


def compared(benchmark: str, case: str, sides: Mapping[str, Side], options: Options) -> Iterator[Row]:
    """The rows of one case."""
    yield from compared_rows(benchmark, case, *compare(sides, options.repeats, options.device))


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    gc.collect()
    _wait(device)
    begin = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begin


def working_memory(call: Side, device: torch.device) -> tuple[int, Tensor]:
    """(peak bytes above the level before, what the call returned)."""
    gc.collect()
    if device.type == "cuda":
        call()  # workspaces and compiled kernels stay; they are not this call's
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        output = call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, output
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        output = call()
    return peak_of(trace), output


def peak_of(trace: profile) -> int:
    """The highest running sum of a profile's CPU memory events, in bytes."""
    results = trace.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    )
    level = peak = 0
    for _, change in changes:
        level += change
        peak = max(peak, level)
    return peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

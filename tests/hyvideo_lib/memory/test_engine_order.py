"""The waits that keep copies and computing apart, on a device that keeps no other order.

Everything but the device is real, and whatever the device's pace, a model computes what it computes at home.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from fake_device import FakeDevice, Pace, Stop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hyvideo_lib.memory import BlockSwap, Offloader, copy_engine, offload, pinned
from hyvideo_lib.memory.pinned import PinnedPool
from hyvideo_lib.transformer.loan import on_loan
from hyvideo_lib.transformer.ops import Linear

WIDTH, BASE = 4, 31
PLENTY = 10**9
LATE, COPIES_FIRST, COMPUTING_FIRST = Pace(), Pace(copies=1, thread=1), Pace(computing=1)


class Block(nn.Module):
    """Computes with whole numbers, in whatever order exactly. The larger ones have weights that nothing needs."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.fc = Linear(WIDTH, size * WIDTH).requires_grad_(False)
        for parameter in self.parameters():
            parameter.copy_(torch.randint(BASE, parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)[:, -WIDTH:].remainder(BASE)


class Added:
    """An adapter that goes into the weight, and so into the slot where that is on loan."""

    origin = None
    reads_weight = False

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        pass

    def merging(self, tokens: int) -> Added:
        return self

    def added(self, weight: Tensor, rows: slice) -> Tensor:
        return weight + 1

    def add_(self, weight: Tensor, rows: slice) -> None:
        weight += 1

    def with_bias(self, bias: Tensor | None, rows: slice) -> Tensor | None:
        return bias


class Model(nn.Module):
    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(Block(1 + place % 3, generator) for place in range(num_blocks))
        for block in self.blocks:
            block.fc.adapters = (Added(),)

    def forward(self, x: Tensor, source: Offloader) -> Tensor:
        with closing(source.through(self.blocks)) as blocks:
            for block in blocks:
                x = block(x)
        return x


def another_stage(x: Tensor) -> list[Tensor]:
    """Computes in memory of its own, which was a slot just now, or will be one."""
    return [x * factor for factor in range(1, 5)]


@contextmanager
def fake_device(pace: Pace, free_ram: int | None) -> Iterator[FakeDevice]:
    device = FakeDevice(pace)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "get_device_module", lambda _: device)
        for name in ("ThreadPoolExecutor", "wait", "empty_bytes", "give_back_pinned"):
            patch.setattr(copy_engine, name, getattr(device, name))
        for name in ("empty_bytes", "give_back_pinned"):
            patch.setattr(pinned, name, getattr(device, name))
        patch.setattr(offload, "PinnedPool", partial(PinnedPool, free_ram_fn=lambda: free_ram))
        with device:
            yield device


def make_source(model: Model, device: FakeDevice, swapped: int, prefetch: int) -> Offloader:
    return Offloader(
        model,
        list(model.blocks),
        swap=BlockSwap(0, swapped, prefetch),
        copy_fn=lambda tensor, _: device.put(tensor),
        can_stream_fn=lambda _: True,
        on_loan_fn=on_loan,
    )


def make_input() -> Tensor:
    return torch.arange(3.0 * WIDTH).view(3, WIDTH)


@dataclass(frozen=True)
class Plan:
    """What is run, where blocks are kept, and what happens between runs and after them."""

    num_blocks: int = 4
    swapped: int = 4
    prefetch: int = 1
    free_ram: int | None = PLENTY
    between: str = "nothing"
    ending: str = "go home"
    pace: Pace = LATE


def check(plan: Plan, fail_in: int | None = None) -> bool:
    """Whatever goes wrong and is tried again, all that is computed is right; whether anything did go wrong."""
    model, x = Model(plan.num_blocks), make_input()
    expected, home = model(x, Offloader(model)), [tensor.clone() for tensor in model.state_dict().values()]
    with fake_device(plan.pace, plan.free_ram) as device:
        found, wanted = another_stage(device.put(x)), another_stage(x)
        source = make_source(model, device, plan.swapped, plan.prefetch)
        device.fail_in, held = fail_in, []
        for _ in range(3):
            with suppress(Stop):
                if source.device is None:
                    source.load("cpu")
                found.append(model(device.put(x), source))
                wanted.append(expected)
            held.append(source._stream)  # closing it has to be enough
            if plan.between == "unload":
                source.unload(1)
            elif plan.between == "go home":
                source.go_home()
        has_failed, device.fail_in = device.fail_in is None, None
        assert len(found) >= 6  # what failed once is not remembered
        if plan.ending == "go home":
            source.go_home()
            assert all(thread.is_over for thread in device.threads)
            assert device.pinned_bytes == 0 or plan.free_ram is not None
        else:
            held.clear()
        del source
        found += another_stage(device.put(x))
        wanted += another_stage(x)
        assert all(torch.equal(device.read(one), other) for one, other in zip(found, wanted, strict=True))
    if plan.ending == "go home":
        assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), home, strict=True))
    return has_failed


@pytest.mark.parametrize("ending", ["go home", "forget"])
@pytest.mark.parametrize("free_ram", [None, 6000, PLENTY], ids=["staged", "pinned in part", "pinned"])
@pytest.mark.parametrize("pace", [LATE, COPIES_FIRST, COMPUTING_FIRST], ids=["late", "copies first", "computing first"])
def test_no_extreme_of_order_changes_a_number(pace: Pace, free_ram: int | None, ending: str) -> None:
    for prefetch in range(4):
        check(Plan(prefetch=prefetch, free_ram=free_ram, ending=ending, pace=pace))


CHANCES = st.sampled_from([0.0, 0.5, 1.0])


@given(
    st.builds(
        Plan,
        num_blocks=st.integers(1, 6),
        swapped=st.integers(1, 6),
        prefetch=st.integers(0, 4),
        free_ram=st.sampled_from([None, 6000, PLENTY]),
        between=st.sampled_from(["nothing", "unload", "go home"]),
        ending=st.sampled_from(["go home", "forget"]),
        pace=st.builds(Pace, CHANCES, CHANCES, CHANCES, st.integers(0, 99)),
    ),
    st.none() | st.integers(0, 60),
)
@settings(max_examples=60)
def test_no_order_changes_a_number_whatever_goes_wrong(plan: Plan, fail_in: int | None) -> None:
    check(plan, fail_in)


@pytest.mark.parametrize("between", ["nothing", "go home"])
@pytest.mark.parametrize("free_ram", [None, PLENTY], ids=["staged", "pinned"])
def test_after_a_failure_anywhere_the_next_runs_are_right(free_ram: int | None, between: str) -> None:
    fail_in = 0
    while check(Plan(num_blocks=3, free_ram=free_ram, between=between), fail_in):
        fail_in += 1
    assert fail_in > 30


def test_blocks_in_pinned_memory_are_waited_for_by_nobody_but_the_device() -> None:
    model, x = Model(4), make_input()
    with fake_device(LATE, PLENTY) as device:
        source = make_source(model, device, 4, 1)
        source.load("cpu")
        for _ in range(2):
            model(device.put(x), source)
        source.go_home()
        assert device.num_waits == 0


def test_copies_run_ahead_of_computing_as_far_as_there_are_slots() -> None:
    model, x = Model(4), make_input()
    with fake_device(COPIES_FIRST, PLENTY) as device:
        source = make_source(model, device, 4, 2)
        source.load("cpu")
        device.finish()  # what used the slots' memory before
        computing, copies = device.streams
        computed = computing.num_run
        model(device.put(x), source)
        assert (computing.num_run, copies.num_run) == (computed, 3)
        device.finish()
        assert copies.num_run == 6

"""The order of copies: by a simulated engine that forbids hazards, and by a real one whose slots are poisoned."""

import contextlib
import gc
import itertools
import threading
import weakref
from dataclasses import replace
from typing import ClassVar

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyvideo_lib.memory import BlockSwap, Offloader, Traffic, block_stream, copy_engine, flat, offload
from hyvideo_lib.memory.block_swap import fit_resident, slot_bytes
from hyvideo_lib.memory.copy_engine import HostBlock, StreamCopyEngine
from hyvideo_lib.memory.pinned import PinnedPool
from hyvideo_lib.memory.simulate import SlotError, TimedEngine, simulate
from hyvideo_lib.memory.stream import SlotRing
from hyvideo_lib.transformer import HunyuanVideoTransformer


class Stop(Exception):  # noqa: N818
    """Something went wrong while a block computed."""


@st.composite
def plans(draw):
    """(sizes, which are kept, slots, for each pass the place where it is cut short or None)."""
    sizes = draw(st.lists(st.integers(1, 100), min_size=1, max_size=12))
    kept = draw(st.sets(st.integers(0, len(sizes) - 1), max_size=len(sizes) - 1))
    cuts = draw(st.lists(st.none() | st.integers(0, len(sizes) - 1), min_size=1, max_size=5))
    return sizes, kept, draw(st.integers(1, 4)), cuts


@given(plans(), st.floats(0.1, 1000))
def test_every_block_finds_itself_in_its_slot_whatever_happens(plan, bandwidth):
    sizes, kept, num_slots, cuts = plan
    streamed = [i for i in range(len(sizes)) if i not in kept]
    engine = TimedEngine(dict(enumerate(sizes)), num_slots, bandwidth)
    ring = SlotRing(streamed, num_slots, engine)
    for cut in cuts:
        try:
            for block in streamed:
                with ring.use(block) as slot:
                    assert engine.block_in(slot) == block
                    engine.compute(0.1)
                    if block == cut:
                        raise Stop
        except Stop:
            pass


@given(plans(), st.integers(0, 60))
def test_a_copy_that_fails_leaves_a_ring_that_works(plan, fail_at):
    sizes, kept, num_slots, _ = plan
    streamed = [i for i in range(len(sizes)) if i not in kept]

    class Failing(TimedEngine):
        calls = itertools.count()

        def start(self, slot, block):
            if next(self.calls) == fail_at:
                raise Stop
            super().start(slot, block)

    engine = Failing(dict(enumerate(sizes)), num_slots, 10.0)
    ring = SlotRing(streamed, num_slots, engine)
    done = 0
    for _ in range(4):
        try:
            for block in streamed:
                with ring.use(block) as slot:
                    assert engine.block_in(slot) == block
            done += 1
        except Stop:
            pass
    assert done >= 3


def test_a_slot_in_use_is_never_overwritten():
    engine = TimedEngine({0: 1, 1: 1}, 1, 1.0)
    engine.start(0, 0)
    engine.finish(0)
    with pytest.raises(SlotError, match="block 1 would overwrite block 0"):
        engine.start(0, 1)


def test_the_next_blocks_are_under_way_while_one_computes():
    events = []

    class Log(TimedEngine):
        def start(self, slot, block):
            events.append(f"start {block}")
            super().start(slot, block)

    ring = SlotRing([0, 2, 3], 2, Log(dict.fromkeys(range(4), 1), 2, 1.0))
    for _ in range(2):
        for block in (0, 2, 3):
            with ring.use(block):
                events.append(f"compute {block}")
    assert events == [
        *("start 0", "start 2", "compute 0", "start 3", "compute 2", "start 0", "compute 3"),
        *("start 2", "compute 0", "start 3", "compute 2", "start 0", "compute 3"),
    ]


def test_streaming_hides_copies_behind_computing():
    sizes, seconds = [10] * 20, [1.0] * 20
    streamed = simulate(sizes, seconds, frozenset(), 1, bandwidth=11, passes=10)
    assert streamed.moved >= 10 * sum(sizes)
    assert streamed.stalled == pytest.approx(10 / 11)  # the very first copy, and no other
    in_turn = simulate(sizes, seconds, frozenset(), 0, bandwidth=11, passes=10)
    assert in_turn.stalled == pytest.approx(200 * 10 / 11)
    slow = simulate(sizes, seconds, frozenset(), 2, bandwidth=5, passes=10)
    assert slow.seconds == pytest.approx(200 * 10 / 5, rel=0.01)  # the link alone decides
    spread = simulate(sizes, seconds, frozenset(range(0, 20, 2)), 1, bandwidth=5.5, passes=10)
    assert spread.stalled < 3  # every other block stays: half the bytes, all of them hidden
    assert simulate(sizes, seconds, frozenset(range(20)), 1, 5, 10).stalled == 0


# On tensors


class Poisoned(StreamCopyEngine):
    """Fills a slot with NaN as soon as it is released: what computes with an old or unfinished copy shows it."""

    made: ClassVar[list["Poisoned"]] = []

    def __init__(self, *args):
        super().__init__(*args)
        self.starts = 0
        self.made.append(self)

    def start(self, slot, block):
        self.starts += 1
        super().start(slot, block)

    def release(self, slot):
        super().release(slot)
        self.slots[slot].fill_(255)


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.setattr(Poisoned, "made", [])
    monkeypatch.setattr(block_stream, "StreamCopyEngine", Poisoned)
    return Poisoned.made


def make_model(num_double=2, num_single=2) -> HunyuanVideoTransformer:
    config = replace(tiny.TRANSFORMER, num_double_blocks=num_double, num_single_blocks=num_single)
    model = HunyuanVideoTransformer(config)
    tiny.randomise(model, 0)
    return model.requires_grad_(False)


def streamed(model, swap=None) -> Offloader:
    blocks = [*model.double_blocks, *model.single_blocks]
    copy = lambda tensor, device: tensor.clone()  # noqa: E731
    return Offloader(model, blocks, len(model.double_blocks), swap, copy, can_stream_fn=lambda device: True)


def with_ram(monkeypatch, ram):
    """So many bytes of RAM are free for pinned copies, or nobody knows how many."""
    monkeypatch.setattr(offload, "PinnedPool", lambda *args: PinnedPool(*args, lambda: ram))


@torch.no_grad()
def run(model, source=None, host=None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 2, 4, 4, generator=generator)
    text, pooled = torch.randn(1, 5, 24, generator=generator), torch.randn(1, 20, generator=generator)
    return model(latents, torch.tensor([500.0]), text, None, pooled, source=source, host=host)


def addresses(model) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("ram", [None, 10**9], ids=["carried by a thread", "pinned"])
@pytest.mark.parametrize("prefetch", [1, 2, 9])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_streamed_equals_resident_bit_for_bit(monkeypatch, engines, ram, prefetch, count, mode):
    """Also in the mode that ComfyUI runs nodes in, which the thread that carries blocks is not in."""
    with mode():
        check_streaming(monkeypatch, engines, ram, prefetch, count)


def check_streaming(monkeypatch, engines, ram, prefetch, count):
    with_ram(monkeypatch, ram)
    model = make_model()
    home, expected = addresses(model), run(model)
    offloader = streamed(model, BlockSwap(count, count, prefetch))
    offloader.load("cpu")
    for _ in range(3):
        assert torch.equal(run(model, offloader), expected)
    (engine,) = engines
    assert len(engine.slots) == min(prefetch + 1, 2 * count)
    assert 6 * count <= engine.starts <= 6 * count + prefetch
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    offloader.go_home()
    assert addresses(model) == home
    assert offloader.loaded_bytes == 0
    assert torch.equal(run(model), expected)


def test_blocks_are_pinned_as_they_come_and_carried_no_more(monkeypatch, engines):
    with_ram(monkeypatch, 10**9)
    model = make_model()
    offloader = streamed(model, BlockSwap(2, 2))
    offloader.load("cpu")
    hosts = [offloader._host(i) for i in range(4)]
    assert [host.pinned for host in hosts] == [None] * 4
    run(model, offloader)
    assert None not in [host.pinned for host in hosts]
    monkeypatch.setattr(copy_engine.ThreadPoolExecutor, "submit", None)
    run(model, offloader)
    offloader.go_home()
    assert [host.pinned for host in hosts] == [None] * 4  # locked RAM is for others then
    assert offloader._pool is None


def test_pinned_memory_follows_the_blocks_that_are_swapped(monkeypatch, engines):
    """Over a session of runs with more and with less room, it is never much more than what waits in RAM."""
    with_ram(monkeypatch, 10**9)
    model = make_model(num_double=4, num_single=8)
    offloader = streamed(model)
    sizes = offloader.block_bytes
    for share in (0.3, 0.5, 0.4, 0.9, 0.6, 0.8, 0.2, 1.0):
        offloader.load("cpu", offloader.fixed_bytes + int(share * sum(sizes)))
        run(model, offloader)
        waiting = sum(size for i, size in enumerate(sizes) if not offloader._blocks[i].is_away)
        pinned = sum(host.layout.num_bytes for host in offloader._hosts.values() if host.pinned is not None)
        assert waiting <= pinned <= waiting / (1 - offload.IDLE_SHARE) + max(sizes) if waiting else pinned == 0


def test_where_nothing_more_can_be_pinned_blocks_are_streamed_all_the_same(monkeypatch, engines):
    """The system's limit may be reached by blocks, and then there is none left for the buffers either."""
    with_ram(monkeypatch, None)
    make = copy_engine.empty_bytes

    def refuse(num_bytes, is_pinned):
        if is_pinned:
            raise RuntimeError("CUDA error: out of memory")
        return make(num_bytes, is_pinned)

    monkeypatch.setattr(copy_engine, "empty_bytes", lambda num_bytes, is_pinned: refuse(num_bytes, asked.pop(0)))
    asked = [True, False, True, False]
    model = make_model()
    offloader = streamed(model, BlockSwap(2, 2))
    offloader.load("cpu")
    assert torch.equal(run(model, offloader), run(make_model()))
    assert not asked


@pytest.mark.parametrize("ram", [None, 10**9], ids=["carried by a thread", "pinned"])
@pytest.mark.parametrize("fail_at", range(5))
def test_after_a_copy_that_failed_no_block_computes_with_what_was_there_before(monkeypatch, engines, ram, fail_at):
    with_ram(monkeypatch, ram)
    model = make_model()
    expected = run(model)
    offloader = streamed(model, BlockSwap(2, 2))
    offloader.load("cpu")
    calls, pack = itertools.count(), flat.FlatLayout.pack

    def pack_or_fail(*args):
        if next(calls) == fail_at:
            raise MemoryError("once")
        pack(*args)

    monkeypatch.setattr(flat.FlatLayout, "pack", pack_or_fail)
    made = []
    for _ in range(4):
        with contextlib.suppress(MemoryError):
            made.append(run(model, offloader))
    assert len(made) >= 3
    assert all(torch.equal(one, expected) for one in made)


@pytest.mark.parametrize("is_told", [True, False], ids=["and is told", "and nobody asks"])
def test_a_block_that_could_not_be_carried_keeps_no_buffer(monkeypatch, is_told):
    """Nor does its error, which knows the buffer, once nobody holds that: pinned memory is too much to wait for gc."""
    buffers, make = [], copy_engine.empty_bytes

    def remember(num_bytes, is_pinned):
        buffer = make(num_bytes, is_pinned)
        buffers.append(weakref.ref(buffer.untyped_storage()))
        return buffer

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(copy_engine, "empty_bytes", remember)
    monkeypatch.setattr(flat.FlatLayout, "pack", fail)
    engine = StreamCopyEngine({0: HostBlock([torch.arange(8.0)])}, 1, torch.device("cpu"))
    gc.disable()
    try:
        engine.start(0, 0)
        if is_told:
            with contextlib.suppress(MemoryError):
                engine.finish(0)
        engine.close()
        assert [buffer() for buffer in buffers] == [None]
    finally:
        gc.enable()


def test_a_cancelled_pass_leaves_everything_as_it_was(engines):
    model = make_model()
    home, expected = addresses(model), run(model)
    offloader = streamed(model, BlockSwap(2, 2))
    offloader.load("cpu")

    class Host:
        left = 0

        def check_interrupt(self):
            self.left -= 1
            if self.left < 0:
                raise Stop

    for blocks in range(4):
        host = Host()
        host.left = blocks
        with pytest.raises(Stop):
            run(model, offloader, host)
        names = {name for name in home if name.split(".")[0] in ("double_blocks", "single_blocks")}
        assert {name: addresses(model)[name] for name in names} == {name: home[name] for name in names}
        assert torch.equal(run(model, offloader), expected)


def test_a_failing_slot_leaves_nothing_on_the_device(monkeypatch):
    model = make_model()
    home = addresses(model)

    def fail(*args):
        raise torch.OutOfMemoryError("no room for slots")

    monkeypatch.setattr(block_stream, "StreamCopyEngine", fail)
    offloader = streamed(model, BlockSwap(1, 1))
    with pytest.raises(torch.OutOfMemoryError):
        offloader.load("cpu")
    assert addresses(model) == home
    assert offloader.loaded_bytes == 0


def test_slots_count_and_go_with_what_they_serve(engines):
    model = make_model()
    offloader = streamed(model)
    everything = offloader.load("cpu")
    assert offloader.num_swapped == 0
    assert not engines
    freed = offloader.unload(1)
    assert freed >= 1
    assert offloader.num_swapped > 2  # two slots of the largest block's size have to be made up for
    assert offloader.loaded_bytes == everything - freed
    assert not engines  # until they are needed: memory that is asked for is given, not taken
    run(model, offloader)
    (engine,) = engines
    assert offloader.loaded_bytes == everything - freed + engine.num_bytes
    offloader.load("cpu")
    assert offloader.loaded_bytes == everything
    assert [engine.slots for engine in engines] == [[]]
    offloader.go_home()
    assert threading.active_count() < 20


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(0, 3000), st.integers(0, 4), st.data())
@settings(max_examples=200)
def test_a_budget_is_kept_slots_included(sizes, budget, num_slots, data):
    candidates = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1))))
    kept = fit_resident(sizes, candidates, budget, num_slots)
    assert set(kept) <= set(candidates)
    used = sum(sizes[i] for i in kept) + slot_bytes(sizes, kept, num_slots)
    assert used <= budget or not kept


@pytest.mark.parametrize("ram", [None, 10**9], ids=["carried by a thread", "pinned"])
def test_bytes_through_the_slots_are_counted_beyond_the_stream(monkeypatch, engines, ram):
    with_ram(monkeypatch, ram)
    model = make_model()
    offloader = streamed(model, BlockSwap(2, 2))
    resident = offloader.load("cpu") - sum(slot.nbytes for slot in engines[0].slots)
    started = []
    start = engines[0].start
    engines[0].start = lambda slot, block: (started.append(block), start(slot, block))
    run(model, offloader)
    sizes = [HostBlock([tensor.data for tensor in block.parameters()]).layout.num_bytes for block in model.blocks]
    expected = resident + sum(sizes[block] for block in started)
    assert offloader.traffic.moved_bytes == expected
    offloader.go_home()
    assert offloader.traffic == Traffic(expected, None)  # this device cannot time waits

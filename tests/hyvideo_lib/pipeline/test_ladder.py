"""Memory that runs out at every point of a run: it goes on from the same step, or ends with advice; nothing is left."""

import gc
import logging
from dataclasses import replace

import pytest
import tiny
import torch

from hyvideo_lib.attention import PLAIN
from hyvideo_lib.caches import METHODS, CacheConfig, MagCurve
from hyvideo_lib.errors import OutOfMemory
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.memory.dry_run import AllocationCounter
from hyvideo_lib.pipeline import Clock, Ladder, SampleRun, SettledRuns
from hyvideo_lib.pipeline import ladder as ladder_module
from hyvideo_lib.pipeline.ladder import RUNGS, cache_on_host, go_leaner, guide_in_turn, load_weights, swap_more
from hyvideo_lib.sampling import GuidanceConfig, make_sigmas
from hyvideo_lib.text import TextEmbeds
from hyvideo_lib.transformer import LeanConfig

SHAPE = (1, 4, 3, 8, 12)
STEPS = 3


class Failing(AllocationCounter):
    """Raises as a device does: once at the n-th operation that makes a tensor, or whenever more than `cap` is held."""

    def __init__(self, at=None, cap=None):
        super().__init__()
        self.at, self.cap, self.made, self.failures = at, cap, 0, 0

    def _know(self, tensor, num_bytes):
        super()._know(tensor, num_bytes)
        if num_bytes:
            self.made += 1
            if self.made == self.at or (self.cap is not None and self.level > self.cap):
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")


def text(seed):
    inputs = tiny.transformer_inputs(text_tokens=9, seed=seed)
    return TextEmbeds(inputs["text_embeds"], inputs["text_mask"], inputs["pooled_embeds"], (0,))


def make_run(kind):
    model = tiny.tiny_transformer().requires_grad_(False)
    is_streamed = kind == "streamed"
    copy = lambda tensor, device: tensor.clone()  # noqa: E731
    swap = BlockSwap(1, 1) if is_streamed else BlockSwap()
    source = Offloader(
        model,
        model.blocks,
        2,
        swap,
        copy,
        lambda device: is_streamed,
        aside=model.modulations,
        keep_pinned=False,  # pinned copies stay in RAM by intention, and here all is RAM
    )
    guidance = GuidanceConfig(cfg_scale=3.0) if kind == "guided" else GuidanceConfig()
    run = SampleRun(model, text(1), text(2), make_sigmas(STEPS, 3.0), 0.5, HeadlessHost(), guidance=guidance)
    return replace(run, source=source)


def sample(run, mode):
    clock = Clock(run.host)
    try:
        with mode, clock.stage("sample"):
            load_weights(run, run.source, None)
            made = run.make(torch.zeros(SHAPE), seed=0)
    finally:
        run.source.go_home()
    return made


def ending(run, mode):
    """(the video, "") or (None, what was said)."""
    try:
        return sample(run, mode), ""
    except OutOfMemory as error:
        return None, str(error)


def addresses(model):
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


KINDS = ("resident", "streamed", "guided")


@pytest.fixture(scope="module")
def clean():
    """Of each kind what comes out undisturbed, how many tensors are made on the way, and how much is held at most."""
    found = {}
    for kind in KINDS:
        mode = Failing()
        found[kind] = sample(make_run(kind), mode), mode.made, mode.peak
    return found


def check_nothing_is_left(run, home, mode):
    assert addresses(run.model) == home
    assert run.source.loaded_bytes == 0
    assert run.source.device is None
    gc.collect()
    assert mode.level <= 2**14  # the video that came out


@pytest.mark.parametrize("part", range(20))
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_allocation_anywhere_costs_a_step_down_and_nothing_else(clean, kind, part):
    expected, made, _ = clean[kind]
    run, mode = make_run(kind), Failing(at=1 + part * (made - 1) // 19)
    home = addresses(run.model)
    found, told = ending(run, mode)
    if found is None:
        assert "Memory ran out while sampling: 2.00 GiB more were asked for" in told
        assert "hyvideo plan" in told
        assert not run.rungs  # it came between the steps, where there is no way down
        assert part in (0, 1, 18, 19)
    else:
        assert mode.failures == 1
        assert len(run.rungs) == 1
        if "blocks in RAM" in run.rungs[0]:
            assert torch.equal(found, expected)
        assert tiny.relative_error(found, expected) <= 1e-5
    check_nothing_is_left(run, home, mode)


@pytest.mark.parametrize("percent", [40, 60, 80, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_under_a_cap_a_run_ends_finished_or_with_numbers(clean, kind, percent):
    expected, _, peak = clean[kind]
    run, mode = make_run(kind), Failing(cap=peak * percent // 100)
    home = addresses(run.model)
    found, told = ending(run, mode)
    if found is None:
        assert "Memory ran out while" in told
        if "Nothing is left" in told:
            assert "of weights are on the device" in told
            assert all(rung in told for rung in run.rungs)
            assert mode.failures >= len(run.rungs)
            assert "hyvideo plan" in told
    else:
        assert run.rungs
        assert tiny.relative_error(found, expected) <= 1e-5
    check_nothing_is_left(run, home, mode)


def test_small_caps_are_survived_at_all(clean):
    """Of the caps above at least those that take little are held to finish, not only to fail well."""
    for kind in ("resident", "guided"):
        mode = Failing(cap=clean[kind][2] * 90 // 100)
        assert tiny.relative_error(sample(make_run(kind), mode), clean[kind][0]) <= 1e-5


def test_going_on_equals_a_run_that_began_on_the_rung(clean):
    _, made, _ = clean["resident"]
    run = make_run("resident")
    found = sample(run, Failing(at=made // 2))
    begun = make_run("resident")
    begun.source.load("cpu")
    swap_more(begun)
    assert torch.equal(found, begun.make(torch.zeros(SHAPE), seed=0))


FREE = {"teacache": 1.0, "first_block": 20.0, "easycache": 2.0, "magcache": 0.1}
"""Thresholds that skip some of the steps here."""
SMALL = torch.zeros(1, 4, 3, 4, 6)
EXACT = swap_more, cache_on_host


class FailsOnce:
    """Runs out of memory at the n-th point of a run: before its blocks, in their attention, or after them."""

    def __init__(self, at=0):
        self.at, self.passed = at, 0

    def __call__(self, *_):
        self.passed += 1
        if self.passed == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def watch(self, run):
        for layer in (run.model.img_in, run.model.final_layer):
            layer.register_forward_pre_hook(self)

        def attend(*args, **more):
            self()
            return PLAIN.attend_fn(*args, **more)

        return replace(run, attention=replace(PLAIN, attend_fn=attend))


def make_cached_run(method, guidance):
    sigmas = make_sigmas(8, 3.0)
    curve = MagCurve(tuple(sigmas[:-1].tolist()), (1.01,) * 7)
    run = make_run("resident")
    run.source.load("cpu")
    return replace(run, sigmas=sigmas, guidance=guidance, cache=CacheConfig(method, FREE[method], curve=curve))


@pytest.mark.parametrize(
    ("guidance", "solver"),
    [
        (GuidanceConfig(), "heun"),
        (GuidanceConfig(cfg_scale=3.0), "euler"),
        (GuidanceConfig(cfg_scale=3.0, batched=False, cfg_end=0.7), "euler"),
    ],
    ids=["no CFG", "batched", "in turn"],
)
@pytest.mark.parametrize("method", METHODS)
def test_with_a_cache_going_on_equals_a_run_that_began_on_the_rung(method, guidance, solver):
    """The same video, and the same steps skipped, wherever memory runs out."""

    def make(failing, rung, rungs=()):
        run = replace(make_cached_run(method, guidance), solver=solver)
        for taken in rungs:
            run, _ = taken(run)
        cache, ladder = run.start_cache((3, 4, 6)), Ladder(run := failing.watch(run))
        ladder._next = RUNGS.index(rung)
        made = run.make(SMALL, seed=0, step_cache=cache, ladder=ladder)
        run.source.go_home()
        return made, replace(cache.report, on_host=False), run.rungs

    for rung in RUNGS:
        if rung(make_cached_run(method, guidance)) is None:
            continue
        counting = FailsOnce()
        begun, expected, _ = make(counting, rung, (rung,))
        assert 0 < expected.skipped_steps < 7
        for part in range(5):
            found, report, taken = make(FailsOnce(1 + part * (counting.passed // 2 - 1) // 4), rung)
            assert len(taken) == 1
            assert (report.steps, report.skipped_steps) == (expected.steps, expected.skipped_steps)
            assert rung is guide_in_turn or report == expected  # passes that were over by then had both branches
            if rung in EXACT:
                assert torch.equal(found, begun)
            assert tiny.relative_error(found, begun) <= 1e-4  # float32, amplified by the scale


def test_what_a_cache_keeps_goes_to_ram_once():
    run = make_cached_run("teacache", GuidanceConfig())
    below, words = cache_on_host(run)
    assert (below.cache.on_host, words) == (True, "what the step cache keeps in RAM")
    assert cache_on_host(below) is None
    assert cache_on_host(make_cached_run("easycache", GuidanceConfig())) is None  # next to nothing
    assert cache_on_host(replace(run, source=None)) is None  # RAM is where it is
    assert cache_on_host(replace(run, cache=None)) is None
    assert RUNGS.index(cache_on_host) < RUNGS.index(go_leaner)
    assert "do without the step cache or take easycache" in Ladder(run).advice()
    assert "easycache" not in Ladder(replace(run, cache=None)).advice()


def test_a_batch_begins_each_video_where_memory_sufficed_for_the_one_before(clean):
    _, made, _ = clean["guided"]
    run = replace(make_run("guided"), source=None)  # of what is left, going leaner comes first
    ladder = Ladder(run)
    with Failing(at=made // 2):
        first = run.make(torch.zeros(SHAPE), 0, ladder=ladder)
    assert run.rungs == ["heads in 2 groups"]
    assert ladder.run.lean == LeanConfig(2)
    second = run.make(torch.zeros(SHAPE), 0, ladder=ladder)
    assert torch.equal(second, replace(run, lean=LeanConfig(2)).make(torch.zeros(SHAPE), 0))
    assert tiny.relative_error(first, second) <= 1e-5
    assert len(run.rungs) == 1


def test_each_rung_gives_less_until_there_is_none():
    run = make_run("guided")
    assert swap_more(run) is None  # at home there is nothing to swap
    run.source.load("cpu")
    told = []
    while found := swap_more(run):
        told.append(found[1])
    assert run.source.num_swapped == 4
    assert 1 <= len(told) <= 4
    assert told[-1].endswith("(4 of 4)")
    leans = []
    step = run
    while found := go_leaner(step):
        step = found[0]
        leans.append(step.lean)
    assert leans == [LeanConfig(2), LeanConfig(2, 512), LeanConfig(2, 256)]
    assert guide_in_turn(run)[0].guidance.batched is False
    assert guide_in_turn(guide_in_turn(run)[0]) is None
    assert len(RUNGS) == 4
    run.source.go_home()


def test_a_step_down_that_fails_itself_is_followed_by_the_next(monkeypatch):
    def fail(run):
        raise torch.OutOfMemoryError("no room for that either")

    monkeypatch.setattr(ladder_module, "RUNGS", (fail, *RUNGS[1:]))
    run = replace(make_run("guided"), source=None)
    ladder = Ladder(run)
    for _ in range(4):
        ladder._descend("at noise level 0.5")
    assert run.rungs[-1] == "heads in 2 groups and 256 tokens at a time"
    assert not ladder.run.guidance.batched
    with pytest.raises(OutOfMemory, match=r"again at a step down \(no room for that either\)"):
        ladder._descend("at noise level 0.5")


def test_settled_runs_begin_where_the_last_one_ended_unless_there_is_more_room(clean):
    run = make_run("guided")
    settled, shape = SettledRuns(), SHAPE[2:]
    settled.learn(run, run, shape, 1000)
    assert settled.begin(run, shape, 1000) == (run, None)  # nothing ran out
    ended = replace(run, lean=LeanConfig(2), guidance=replace(run.guidance, batched=False), rungs=["a step down"])
    settled.learn(run, ended, shape, 1000)
    begun, most = settled.begin(run, shape, 1000)
    assert (begun.lean, begun.guidance.batched, most) == (LeanConfig(2), False, run.source.loaded_bytes)
    assert settled.begin(run, shape, None)[0].lean == LeanConfig(2)
    assert settled.begin(run, shape, 1100) == (run, None)  # a program that took memory is gone
    assert settled.begin(run, (1, 2, 2), 1000) == (run, None)
    assert settled.begin(replace(run, guidance=GuidanceConfig()), shape, 1000)[0].lean == LeanConfig()


def test_blocks_that_are_where_they_compute_are_not_swapped():
    model = tiny.tiny_transformer().requires_grad_(False)
    source = Offloader(model, model.blocks, 2)
    run = replace(make_run("resident"), model=model, source=source)
    source.load("cpu")
    assert swap_more(run) is None


def test_every_step_down_is_told(clean, caplog):
    with caplog.at_level(logging.WARNING, "hyvideo"):
        sample(make_run("resident"), Failing(at=clean["resident"][1] // 2))
    (record,) = caplog.records
    assert "going on from the same step with" in record.message
    assert "noise level" in record.message


def test_what_the_driver_puts_into_ram_is_a_step_down_too(clean, monkeypatch, caplog):
    """No error says so there. The first time it may be what PyTorch kept unused; with nothing left the run goes on."""

    class Spilling:
        def __init__(self, device):
            self.is_on = True

        @property
        def num_bytes(self):
            return 2**30 if self.is_on else 0

    monkeypatch.setattr(ladder_module, "SpillWatch", Spilling)
    run = replace(make_run("guided"), source=None, sigmas=make_sigmas(8, 3.0))
    with caplog.at_level(logging.WARNING, "hyvideo"):
        found = run.make(torch.zeros(SHAPE), 0)
    monkeypatch.undo()
    expected = replace(run, rungs=[]).make(torch.zeros(SHAPE), 0)
    assert tiny.relative_error(found, expected) <= 1e-5
    assert len(run.rungs) == 4
    said = [record.message for record in caplog.records]
    assert all("the driver put 1.00 GiB into RAM" in message for message in said)
    assert ["steps take long" in message for message in said] == [False] * 4 + [True]


def test_other_errors_are_not_taken_for_short_memory():
    run = make_run("resident")

    class Broken(Failing):
        def _know(self, tensor, num_bytes):
            super()._know(tensor, num_bytes)
            if self.made == 100:
                raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        sample(run, Broken())
    assert not run.rungs

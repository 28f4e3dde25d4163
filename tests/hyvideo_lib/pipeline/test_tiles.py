"""Tiles that are chosen, and memory that runs out at every point of the work."""

from __future__ import annotations

import weakref
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from hyvideo_lib.checkpoint.blueprint import build_meta_vae
from hyvideo_lib.errors import InvalidTiles, OutOfMemory
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.memory import fit
from hyvideo_lib.memory.plan import with_reserve
from hyvideo_lib.pipeline import FIT, FIT_SHARED, Clock, PixelStage, Precision, VAEWork, tiles
from hyvideo_lib.pipeline.dry_run import decode_work, encode_work
from hyvideo_lib.vae import CausalVideoVAE, Tiles, VAEConfig

HD = VAEWork(VAEConfig(), torch.float16, 2**29, 129, 720, 1280)


# Which tiles


def test_tiles_and_none_are_taken_as_they_are():
    assert HD.choose(None, 0) is None
    assert HD.choose(Tiles(64, 16), 0) == Tiles(64, 16)


@pytest.mark.parametrize("gib", [4, 8, 24])
@pytest.mark.parametrize("work", [HD, replace(HD, height=544, width=960)])
def test_fit_takes_what_fits_beside_a_reserve_and_computes_less_than_the_reference(work, gib):
    found = work.choose(FIT, gib * 2**30)
    assert with_reserve(work.num_bytes(found)) == work.working_bytes(found) <= gib * 2**30
    latents, tiles = found.cost(*work.video)
    reference_latents, reference_tiles = Tiles().cost(*work.video)
    assert latents <= 0.9 * reference_latents
    assert tiles <= 0.9 * reference_tiles


def test_a_run_counts_as_its_plan_does():
    sketch = build_meta_vae(VAEConfig()).half()
    assert HD.num_bytes(Tiles()) == decode_work(sketch, HD.video, Tiles())
    assert replace(HD, is_encoding=True).num_bytes(Tiles()) == encode_work(sketch, HD.video, Tiles())


@pytest.mark.parametrize("chosen", [Tiles(), Tiles(128, 16)])
def test_encoding_takes_half_in_16_bits_and_no_more_for_a_longer_video(chosen):
    long, short = (replace(HD, is_encoding=True, frames=frames).num_bytes(chosen) for frames in (129, 113))
    assert long - short <= 2**23  # latents; the 16 frames alone would be 10 times as much
    assert long <= 0.55 * replace(HD, is_encoding=True, dtype=torch.float32).num_bytes(chosen)


@pytest.mark.parametrize("is_encoding", [False, True])
@pytest.mark.parametrize("chosen", [None, Tiles(32, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_known_without_counting_is_less_and_not_far_off(dtype, chosen, is_encoding):
    work = VAEWork(VAEConfig((32, 64, 64, 64)), dtype, 0, 65, 64, 64, is_encoding)
    assert 0.5 * work.num_bytes(chosen) <= work._least(chosen) <= work.num_bytes(chosen)


def test_nothing_is_counted_where_it_is_plain_that_tiles_do_not_fit(monkeypatch):
    monkeypatch.setattr(tiles, "decode_work", None)
    huge = replace(HD, frames=1001, height=9600, width=16000)
    assert huge.choose(FIT, 8 * 2**30) == Tiles(128, 16)


def test_fit_cuts_nothing_where_all_fits_and_as_the_reference_where_nobody_knows():
    assert HD.choose(FIT, 2**40) is None
    assert HD.choose(FIT, None) == Tiles()


def test_another_word_is_refused():
    with pytest.raises(InvalidTiles, match="tiles is 'huge'"):
        HD.choose("huge", 0)


@pytest.mark.parametrize("first", [None, Tiles(512, 16, 0.5)])
def test_every_step_down_halves_the_work_and_ends_at_the_smallest(first):
    work = replace(HD, config=VAEConfig(layers_per_block=1), frames=33, height=480, width=480)
    ladder = [first]
    while (following := work.smaller(ladder[-1])) is not None:
        ladder.append(following)
    works = [work.num_bytes(step) for step in ladder]
    assert all(later <= earlier / 2 for earlier, later in pairwise(works[:-1]))
    assert works[-1] < works[-2]
    assert (ladder[-1].size, ladder[-1].frames) == (fit.SIZES[-1], fit.LENGTHS[-1])
    assert len(ladder) <= 9


def test_a_step_down_goes_at_once_to_what_fits():
    assert HD.smaller(None, free=2**30) == HD.choose(FIT, 2**30)
    assert HD.smaller(None, free=0) == Tiles(fit.SIZES[-1], fit.LENGTHS[-1])
    assert HD.smaller(None, free=2**50) == HD.smaller(None)


def test_an_overlap_is_kept_where_it_goes():
    assert HD.smaller(Tiles(512, 64, 0.5)).overlap == 0.5
    assert HD.smaller(Tiles(400, 80, 0.2)).overlap == 0.25


@pytest.mark.parametrize("gib", [6, 8, 12, 16, 24])
@pytest.mark.parametrize("size", [(720, 1280), (544, 960), (480, 848)])
def test_what_fits_fades_over_as_many_pixels_as_the_reference_or_as_large_a_part(size, gib):
    """More of them would be computed twice for nothing, fewer would show."""
    work = replace(HD, height=size[0], width=size[1])
    found = work.choose(FIT, gib * 2**30)
    is_cut_in_time = found.frames < work.frames
    fade = found.size * found.overlap
    assert fade == pytest.approx(found.size * 0.25 if is_cut_in_time else min(64, found.size * 0.25))
    assert (found.space.shared, found.time.shared) == (fade / 8, found.frames / 4 * found.overlap)


def test_smaller_ones_fade_so_too():
    wide = HD.choose(FIT, 24 * 2**30)
    assert wide.overlap < 0.25
    smaller = HD.smaller(wide)
    assert smaller.size * smaller.overlap == min(64, 0.25 * smaller.size)
    assert HD.smaller(Tiles(512, 144, 0.5)).overlap == 0.5


def test_shared_norms_are_kept():
    assert HD.choose(FIT_SHARED, 2**32).shared_norms
    assert HD.choose(FIT_SHARED, None) == Tiles(shared_norms=True)
    assert HD.choose(FIT_SHARED, 2**40) is None
    for first in (Tiles(512, 64, 0.5, True), Tiles(400, 80, 0.2, True)):
        assert HD.smaller(first).shared_norms


# Memory that runs out. The video is 37 frames of 64 x 64, and tiles go down to 32 pixels and 16 frames.

LATENTS = torch.randn(1, 16, 10, 8, 8, generator=torch.Generator().manual_seed(0))
FRAMES = torch.randint(0, 256, (37, 64, 64, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
LADDER = [None, Tiles(64, 16), Tiles(32, 16)]
CALLS = {"decode": 49, "encode": 43}
"""Modules that run for a whole video."""


class Failures:
    """Counts the calls of a VAE's modules, and raises at some of them what PyTorch raises when memory runs out."""

    def __init__(self, vae: CausalVideoVAE) -> None:
        self.at: dict[int, int] = {}  # attempt to the call that fails in it
        self.attempt, self.calls = 0, 0
        self.seen: list[weakref.ref[Tensor]] = []
        for module in vae.modules():
            module.register_forward_pre_hook(self._before)
            module.register_forward_hook(self._after)

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.calls += 1
        if self.calls == self.at.get(self.attempt):
            self.attempt, self.calls = self.attempt + 1, 0
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more.")

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen.append(weakref.ref(output))

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self.seen)


@pytest.fixture(scope="module")
def stage(tiny_files):
    with closing(PixelStage(tiny_files.vae, Precision(), HeadlessHost(), Clock(HeadlessHost()))) as stage:
        stage.failures = Failures(stage._vae)
        yield stage


@pytest.fixture(scope="module")
def wanted(stage):
    """What each rung makes by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "SIZES", (64, 32))
        return {
            "decode": [stage.decode(LATENTS, rung, Clock(HeadlessHost())) for rung in LADDER],
            "encode": [stage.encode(FRAMES, rung, Clock(HeadlessHost())) for rung in LADDER],
        }


@pytest.fixture
def run(stage, wanted, monkeypatch):
    """run(verb, {attempt: call that fails}) -> (result, notices)."""
    monkeypatch.setattr(fit, "SIZES", (64, 32))
    monkeypatch.setattr(fit, "LENGTHS", (16,))
    monkeypatch.setattr(tiles, "free_ram_bytes", lambda: None)  # a test may say otherwise

    def run(verb: str, at: dict[int, int]):
        stage.failures.at, stage.failures.attempt, stage.failures.calls, stage.failures.seen = at, 0, 0, []
        clock = Clock(HeadlessHost())
        given = LATENTS if verb == "decode" else FRAMES
        result = getattr(stage, verb)(given, None, clock)
        (run.report,) = clock.stages.values()
        return result, clock.notices

    return run


@pytest.mark.parametrize("verb", CALLS)
def test_the_calls_are_counted_right(verb, run, stage):
    run(verb, {})
    assert stage.failures.calls == CALLS[verb]


@pytest.mark.parametrize("call", [*range(1, CALLS["decode"] + 1, 2)])
def test_a_decode_that_fails_anywhere_ends_as_one_that_began_with_smaller_tiles(call, run, stage, wanted):
    result, notices = run("decode", {0: call})
    assert torch.equal(result, wanted["decode"][1])
    assert not torch.equal(result, wanted["decode"][0])
    assert [notice.code for notice in notices] == ["smaller_tiles"]
    assert "in one piece; it starts again in tiles of 64 pixels and 16 frames" in notices[0].message
    assert stage.failures.alive == 0


@pytest.mark.parametrize("call", [1, 13, 30, 43])
def test_an_encode_does_as_well(call, run, stage, wanted):
    result, notices = run("encode", {0: call})
    assert torch.equal(result, wanted["encode"][1])
    assert "while encoding video in one piece" in notices[0].message
    assert stage.failures.alive == 0


@pytest.mark.parametrize("verb", CALLS)
def test_the_report_tells_every_step_down_and_what_was_asked_for(verb, run):
    run(verb, {0: 3, 1: 20})
    assert (run.report.tiles, run.report.asked_tiles) == ("32 x 32 x 16, overlap 0.25", "none")
    assert run.report.rungs == (
        "tiles of 64 pixels and 16 frames after one piece",
        "tiles of 32 pixels and 16 frames after tiles of 64 pixels and 16 frames",
    )
    assert "asked for none, memory ran out, so: tiles of 64" in run.report.describe()
    run(verb, {})
    assert (run.report.asked_tiles, run.report.rungs) == ("none", ())


@pytest.mark.parametrize("call", [1, 20, 50, 51, 80, 120])
def test_a_second_failure_also_in_a_later_tile_goes_one_step_further(call, run, stage, wanted):
    result, notices = run("decode", {0: 3, 1: call})
    assert torch.equal(result, wanted["decode"][2])
    assert len(notices) == 2
    assert stage.failures.alive == 0


@pytest.mark.parametrize("call", [1, 60, 400])
def test_the_last_failure_is_told_with_numbers_and_leaves_nothing_behind(call, run, stage):
    with pytest.raises(OutOfMemory) as caught:
        run("decode", {0: 1, 1: 1, 2: call})
    message = str(caught.value)
    assert "while decoding (CUDA out of memory. Tried to allocate 2.00 GiB.) in tiles of 32 pixels and 16" in message
    assert "no smaller tiles are left" in message
    assert "GiB beside the VAE's 0.00 GiB; an unknown number of bytes are free now" in message
    assert "--width" in message
    assert stage.failures.alive == 0  # though the error is still here


@pytest.mark.parametrize("verb", CALLS)
def test_what_ram_cannot_hold_is_not_tried(verb, run, stage, wanted, monkeypatch):
    work = VAEWork.of(stage._vae, 37, 64, 64, torch.device("cpu"), verb == "encode")
    monkeypatch.setattr(tiles, "free_ram_bytes", lambda: work._least(None) - 1)
    monkeypatch.setattr(tiles, "free_swap_bytes", lambda: 0)
    result, notices = run(verb, {})
    assert torch.equal(result, wanted[verb][2])  # with a reserve nothing fits
    assert "in one piece; it starts again in tiles of 32 pixels and 16 frames" in notices[0].message
    monkeypatch.setattr(tiles, "free_swap_bytes", lambda: 1)
    result, notices = run(verb, {})
    assert torch.equal(result, wanted[verb][0])
    assert not notices
    monkeypatch.setattr(tiles, "free_ram_bytes", lambda: 1000)
    with pytest.raises(OutOfMemory, match=r"\(0.00 GiB at least, and 0.00 GiB of RAM are free\) in tiles of 32 pixels"):
        run(verb, {})
    assert stage.failures.calls == 0


def test_other_errors_are_no_reason_for_smaller_tiles(stage, monkeypatch):
    def fail(tile):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(stage._vae, "pixels", fail)
    clock = Clock(HeadlessHost())
    with pytest.raises(RuntimeError, match="shapes"):
        stage.decode(LATENTS, None, clock)
    assert clock.notices == []


def test_what_was_made_of_a_failed_attempt_is_thrown_away(run, stage, monkeypatch):
    """The one who takes the parts begins anew: he gets no frames of other tiles."""
    monkeypatch.setattr(fit, "SIZES", (64, 32))
    stage.failures.at, stage.failures.attempt, stage.failures.calls = {0: CALLS["decode"] + 1}, 0, 0
    taken: list[list[int]] = []

    def take(parts, chosen):
        taken.append([])
        for part in parts:
            taken[-1].append(len(part))
        return chosen

    assert stage.render(LATENTS, Tiles(64, 16), Clock(HeadlessHost()), take) == Tiles(32, 16)
    assert taken == [[13], [13, 12, 12]]

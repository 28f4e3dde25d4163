"""One run of the sampler: how it makes do with the memory there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TRANSFORMER, relative_error, tiny_transformer

from hyvideo_lib.errors import OutOfMemory
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.pipeline import Files, GenerateRequest, SampleRun, generate, offload_transformer, sampler
from hyvideo_lib.pipeline.working import SampleWork
from hyvideo_lib.sampling import GuidanceConfig, make_sigmas
from hyvideo_lib.text import TextEmbeds
from hyvideo_lib.transformer import HunyuanVideoTransformer, LeanConfig

SHAPE = 3, 64, 64


@pytest.fixture
def run() -> SampleRun:
    model = tiny_transformer().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 5, TRANSFORMER.text_dim, generator=generator)
    pooled = torch.randn(1, TRANSFORMER.pooled_dim, generator=generator)
    embeds = TextEmbeds(text, torch.ones(1, 5).long(), pooled, (0,))
    source = offload_transformer(model)
    return SampleRun(model, embeds, embeds, make_sigmas(2, 3.0), 0.5, HeadlessHost(), source=source)


@pytest.fixture(autouse=True)
def _small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the tiny model takes less than what is kept free beside one."""
    monkeypatch.setattr("hyvideo_lib.memory.plan.RESERVE_BYTES", 100)


def lean_in(run: SampleRun, room: int | None) -> LeanConfig:
    return run.fitted(SHAPE, room)[0].lean


def set_ram(monkeypatch: pytest.MonkeyPatch, free: int | None, swap: int = 0) -> None:
    monkeypatch.setattr(sampler, "free_ram_bytes", lambda: free)
    monkeypatch.setattr(sampler, "free_swap_bytes", lambda: swap)


def test_without_a_bound_a_run_stays_as_it_is(run: SampleRun) -> None:
    assert lean_in(run, None) == run.lean == LeanConfig()


def test_a_run_is_cut_down_only_as_far_as_the_room_asks_for(run: SampleRun) -> None:
    assert run.source
    wide = run.working_bytes(SHAPE)
    enough = run.source.num_bytes + wide
    assert lean_in(run, enough) == LeanConfig()
    cut, working = run.fitted(SHAPE, enough - 1)
    assert cut.lean == LeanConfig(2)
    assert working == cut.working_bytes(SHAPE) < wide
    assert lean_in(run, 0) == LeanConfig(2, 256)


def test_where_weights_do_not_fit_beside_it_the_work_takes_up_to_half_of_the_room(run: SampleRun) -> None:
    assert run.source
    run.source.num_bytes = 100 * run.working_bytes(SHAPE)
    assert lean_in(run, 2 * run.working_bytes(SHAPE)) == LeanConfig()
    assert lean_in(run, 2 * run.working_bytes(SHAPE) - 2) == LeanConfig(2)


def test_both_passes_of_cfg_at_once_need_twice_the_room(run: SampleRun) -> None:
    both = replace(run, guidance=GuidanceConfig(cfg_scale=3.0))
    in_turn = replace(run, guidance=GuidanceConfig(cfg_scale=3.0, batched=False))
    assert both.working_bytes(SHAPE) > 1.6 * in_turn.working_bytes(SHAPE)
    assert in_turn.working_bytes(SHAPE) > run.working_bytes(SHAPE)  # modulating vectors of both


def test_both_passes_of_cfg_go_in_turn_where_not_even_the_leanest_fit_at_once(run: SampleRun) -> None:
    assert run.source
    run = replace(run, guidance=GuidanceConfig(cfg_scale=3.0))
    enough = run.source.least_bytes + replace(run, lean=LeanConfig(2, 256)).working_bytes(SHAPE)
    at_once, _ = run.fitted(SHAPE, enough)
    assert (at_once.guidance.batched, at_once.lean, at_once.rungs) == (True, LeanConfig(2, 256), [])
    in_turn, working = run.fitted(SHAPE, enough - 1)
    assert (in_turn.guidance.batched, in_turn.rungs) == (False, ["both passes of CFG in turn"])
    assert working == in_turn.working_bytes(SHAPE)


def test_the_longer_of_two_texts_counts(run: SampleRun) -> None:
    assert run.negative
    long = replace(run.negative, text_embeds=run.negative.text_embeds.repeat(1, 60, 1))
    assert replace(run, negative=long).working_bytes(SHAPE) > run.working_bytes(SHAPE)


def test_a_run_on_little_memory_makes_the_same_video(run: SampleRun) -> None:
    start = torch.zeros(1, TRANSFORMER.out_channels, 3, 8, 8)
    made = run.make(start, 0)
    assert relative_error(run.fitted((3, 8, 8), 0)[0].make(start, 0), made) <= 1e-5


def test_on_a_cpu_a_run_that_takes_much_of_the_ram_is_as_lean_as_it_must_be(run: SampleRun, monkeypatch) -> None:
    assert run.source
    enough = run.source.num_bytes + run.working_bytes(SHAPE)
    for free, lean in ((1000 * enough, LeanConfig()), (enough, LeanConfig()), (enough - 1, LeanConfig(2))):
        set_ram(monkeypatch, free)
        assert lean_in(run, None) == lean
    set_ram(monkeypatch, None)
    assert lean_in(run, None) == LeanConfig()
    set_ram(monkeypatch, 1000 * enough)
    monkeypatch.setattr(SampleWork, "fitted", None)  # what is small is not even counted
    assert lean_in(run, None) == LeanConfig()


def test_on_a_cpu_both_passes_of_cfg_go_in_turn_where_they_must(run: SampleRun, monkeypatch) -> None:
    in_turn = GuidanceConfig(cfg_scale=3.0, batched=False)
    least = replace(run, guidance=in_turn, lean=LeanConfig(2, 256))._work(SHAPE).bytes_in(LeanConfig(2, 256))
    set_ram(monkeypatch, least)
    fitted, _ = replace(run, guidance=replace(in_turn, batched=True)).fitted(SHAPE, None)
    assert fitted.guidance == in_turn
    assert fitted.rungs == ["both passes of CFG in turn"]
    assert fitted.lean == LeanConfig(2, 256)


def test_a_run_that_ram_cannot_hold_is_refused_before_it_ends_the_process(run: SampleRun, monkeypatch) -> None:
    least = run._work(SHAPE).bytes_in(LeanConfig(2, 256))
    set_ram(monkeypatch, least - 1, swap=1)
    assert lean_in(run, None) == LeanConfig(2, 256)
    set_ram(monkeypatch, least - 1)
    with pytest.raises(OutOfMemory, match=r"Sampling 9 frames of 512 x 512 takes .* of RAM .* smaller or shorter"):
        run.fitted(SHAPE, None)


def test_a_request_that_ram_cannot_hold_is_refused(tiny_files, monkeypatch: pytest.MonkeyPatch) -> None:
    set_ram(monkeypatch, 2**20)
    with pytest.raises(OutOfMemory, match="5 frames of 320 x 320"):
        generate(GenerateRequest("a red circle", width=320, height=320, frames=5, steps=2), Files(**vars(tiny_files)))


def test_a_stage_fits_its_runs_to_the_device(tiny_files, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    from hyvideo_lib.pipeline import stages

    request = GenerateRequest("a red circle", width=32, height=32, frames=5, steps=2, seed=5)
    files = Files(**vars(tiny_files))
    expected = generate(request, files).latents
    monkeypatch.setattr(stages, "free_device_bytes", lambda device: 1000)
    with caplog.at_level("INFO", logger="hyvideo"):
        assert relative_error(generate(request, files).latents, expected) <= 1e-4
    assert "heads attend in 2 groups" in caplog.text


def test_what_a_run_came_down_to_is_where_the_next_of_its_size_begins(tiny_files, monkeypatch) -> None:
    files = Files(**vars(tiny_files))
    request = GenerateRequest("a red circle", width=32, height=32, frames=5, steps=2, seed=5, videos=2)
    expected = generate(request, files).latents
    forward, leans = HunyuanVideoTransformer.forward, []

    def scarce(model, latents, *args, lean, **kwargs):
        leans.append(lean)
        if lean == LeanConfig():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(model, latents, *args, lean=lean, **kwargs)

    monkeypatch.setattr(SampleRun, "working_bytes", lambda run, shape: 0)  # which is reckoned by a forward, too

    monkeypatch.setattr(HunyuanVideoTransformer, "forward", scarce)
    result = generate(request, files)
    assert relative_error(result.latents, expected) <= 1e-4
    assert leans == [LeanConfig(), *[LeanConfig(2)] * 4]
    assert len(result.report.stages["sample"].rungs) == 1

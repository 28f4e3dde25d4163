"""Runs with a step cache, on a transformer with random weights: what is skipped, and that nothing else changes."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from apart import Apart, kept_by

from hyvideo_lib.caches import METHODS, CacheConfig, MagCurve
from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.memory import BlockSwap, Offloader, block_stream
from hyvideo_lib.memory.copy_engine import StreamCopyEngine
from hyvideo_lib.memory.plan import RESERVE_SHARE
from hyvideo_lib.pipeline import SampleRun
from hyvideo_lib.sampling import SOLVERS, GuidanceConfig, make_sigmas
from hyvideo_lib.text import TextEmbeds
from hyvideo_lib.transformer import CompileConfig, HunyuanVideoTransformer
from hyvideo_lib.transformer.ops import Dense

STEPS = 8
SIGMAS = make_sigmas(STEPS, 3.0)
START = torch.zeros(1, 4, 3, 4, 6)
CURVE = MagCurve(tuple(SIGMAS[:-1].tolist()), (1.01,) * (STEPS - 1))
FREE = {"teacache": 0.5, "first_block": 10.0, "easycache": 1.0, "magcache": 0.1}
"""Thresholds that skip some of the steps here."""


class Noting(Dense):
    """Multiplies as it is defined, and notes what it multiplies."""

    def __init__(self, seen: list[torch.Tensor]) -> None:
        self._seen = seen

    def multiply(self, x: torch.Tensor, ready: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        self._seen.append(x)
        return super().multiply(x, ready, bias)


class Counting(HunyuanVideoTransformer):
    """Notes what it is asked to compute: every block by its place, and what the first block's input was."""

    def watch(self):
        self.computed, self.inputs = [], []
        for place, block in enumerate(self.blocks):
            name = "img_mod" if hasattr(block, "img_mod") else "modulation"
            getattr(block, name).register_forward_hook(lambda *_, place=place: self.computed.append(place))
        return self

    def first_input(self, img, condition):
        modulated = super().first_input(img, condition)
        self.computed.pop()  # the modulation that was asked for outside of its block
        self.inputs.append(modulated.clone())
        return modulated


@pytest.fixture
def model():
    made = Counting(tiny.TRANSFORMER)
    tiny.randomise(made, 0)
    return made.requires_grad_(False).watch()


def embeds(seed: int, tokens: int = 7) -> TextEmbeds:
    inputs = tiny.transformer_inputs(text_tokens=tokens, seed=seed)
    return TextEmbeds(inputs["text_embeds"], inputs["text_mask"], inputs["pooled_embeds"], (0,))


def config(method: str, threshold: float | None = None, **more) -> CacheConfig:
    return CacheConfig(method, FREE[method] if threshold is None else threshold, curve=CURVE, **more)


def make_run(model, cache=None, **more) -> SampleRun:
    return SampleRun(model, embeds(1), embeds(2, 5), SIGMAS, 0.5, HeadlessHost(), cache=cache, **more)


def sample(run: SampleRun, **more):
    """(latents, what the cache did)."""
    cache = run.start_cache((3, 4, 6))
    latents = run.make(START, 0, step_cache=cache, **more)
    return latents, cache and cache.report


CFG = {
    "no CFG": GuidanceConfig(),
    "batched": GuidanceConfig(cfg_scale=3.0),
    "in turn": GuidanceConfig(cfg_scale=3.0, batched=False),
    "for a part": GuidanceConfig(cfg_scale=3.0, cfg_start=0.3, cfg_end=0.6),
}


@pytest.mark.parametrize("guidance", CFG.values(), ids=CFG)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("method", METHODS)
def test_with_a_threshold_of_zero_nothing_is_skipped_and_nothing_changes(model, method, solver, guidance):
    plain, _ = sample(make_run(model, solver=solver, guidance=guidance))
    latents, report = sample(make_run(model, config(method, 0.0), solver=solver, guidance=guidance))
    assert torch.equal(latents, plain)
    assert (report.skipped_passes, report.steps) == (0, STEPS)


@pytest.mark.parametrize("method", METHODS)
def test_skipped_passes_compute_no_blocks_but_the_first_where_the_method_looks_at_it(model, method):
    plain, _ = sample(make_run(model))
    assert model.computed == [0, 1, 2, 3] * STEPS
    model.computed.clear()
    latents, report = sample(make_run(model, config(method)))
    assert 0 < report.skipped_steps < STEPS - 1
    each = [0] if method == "first_block" else []
    computed = report.steps - report.skipped_steps
    assert len(model.computed) == 4 * computed + len(each) * report.skipped_steps
    assert model.computed.count(3) == computed
    assert latents.isfinite().all()
    assert not torch.equal(latents, plain)
    assert torch.equal(sample(make_run(model, config(method)))[0], latents)


def test_a_run_skips_the_steps_that_the_formula_says(model):
    """From the inputs that the model really had, with the polynomial worked out anew."""
    _, report = sample(make_run(model, config("teacache", 0.3)))
    inputs = [modulated.double().numpy() for modulated in model.inputs]
    assert len(inputs) == STEPS
    drift, skipped = 0.0, 0
    for step, (before, now) in enumerate(pairwise(inputs), 1):
        change = np.abs(now - before).mean() / np.abs(before).mean()
        drift += np.polyval([733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896], change)
        if drift < 0.3 and step < STEPS - 1:
            skipped += 1
        else:
            drift = 0.0
    assert report.skipped_steps == skipped > 0


def test_the_modulated_input_is_what_the_first_block_computes_with(model):
    seen = []
    model.double_blocks[0].img_attn_qkv.product = Noting(seen)
    sample(make_run(model, config("teacache", 0.0)))
    assert len(seen) == len(model.inputs) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(seen, model.inputs, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
@pytest.mark.parametrize("method", METHODS)
def test_compiled_pieces_skip_the_same_steps(model, method):
    torch._dynamo.reset()
    plain, expected = sample(make_run(model, config(method)))
    compiled, report = sample(make_run(model, config(method), compiling=CompileConfig("eager")))
    assert tiny.relative_error(compiled, plain) <= 1e-4
    assert report.skipped_steps == expected.skipped_steps > 0


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize("method", METHODS)
def test_branches_in_turn_give_the_video_that_a_batch_gives(model, method, part, solver):
    """Which of the two it is depends on free memory, and a seed's video must not."""
    both = GuidanceConfig(cfg_scale=6.0, cfg_start=part[0], cfg_end=part[1])
    for threshold in (0.5, 1, 2):
        cache = config(method, threshold * FREE[method])
        batch, one = sample(make_run(model, cache, guidance=both, solver=solver))
        turns, other = sample(make_run(model, cache, guidance=replace(both, batched=False), solver=solver))
        assert one.skipped_steps == other.skipped_steps
        assert tiny.relative_error(turns, batch) <= 1e-4  # float32, amplified by the scale
    assert 0 < one.skipped_steps < STEPS - 1


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_positive_prompt_decides_for_both(model, method, batched):
    """Shown the same latents, the same levels are skipped whatever the negative prompt is, or if there is none."""

    def skipped(guidance, negative) -> list[bool]:
        run = replace(make_run(model, config(method), guidance=guidance), negative=negative)
        cache = run.start_cache((3, 4, 6))
        velocity_fn = run.velocity_fn(cache)
        latents, found = torch.randn(START.shape, generator=torch.Generator().manual_seed(9)), []
        for sigma, sigma_next in pairwise(SIGMAS.tolist()):
            before = cache.report.skipped_steps
            velocity_fn(latents, sigma)
            found.append(cache.report.skipped_steps - before)
            latents = latents * (1 + 0.2 * (sigma_next - sigma))
        return found

    alone = skipped(CFG["no CFG"], None)
    assert 0 < sum(alone) < STEPS - 1
    for seed in (2, 3):
        assert skipped(GuidanceConfig(cfg_scale=3.0, batched=batched), embeds(seed, 5)) == alone


@pytest.mark.parametrize("method", METHODS)
def test_equal_prompts_make_both_branches_one_run(model, method):
    """CFG between a prompt and itself is that prompt, batched or in turn: nothing of a branch reaches the other."""
    alone, report = sample(make_run(model, config(method)))
    for batched in (True, False):
        run = replace(
            make_run(model, config(method), guidance=GuidanceConfig(cfg_scale=3.0, batched=batched)), negative=embeds(1)
        )
        both, twice = sample(run)
        assert twice.skipped_steps == report.skipped_steps
        assert tiny.relative_error(both, alone) < 1e-4  # float32, amplified by the scale


@pytest.mark.parametrize("method", METHODS)
def test_cfg_for_a_part_of_the_run_comes_and_goes_between_batches_of_one_and_two(model, method):
    latents, report = sample(make_run(model, config(method), guidance=CFG["for a part"]))
    assert latents.isfinite().all()
    assert report.steps == report.passes == STEPS
    assert report.skipped_steps < STEPS - 1


@pytest.mark.parametrize("moves", [False, True], ids=["from the start", "later"])
@pytest.mark.parametrize("guidance", [CFG[name] for name in ("no CFG", "batched", "in turn")])
@pytest.mark.parametrize("method", METHODS)
def test_what_waits_in_ram_gives_the_same_video_and_leaves_nothing_on_the_device(model, method, guidance, moves):
    kept, expected = sample(make_run(model, config(method), guidance=guidance))
    ram, seen = Apart(), []
    cache = config(method, on_host=not moves).begin_run(SIGMAS.tolist(), (48, 2, 2), 1024, ram)

    def look(*_):
        seen.extend(map(ram.has, kept_by(cache)))

    def step(done, total):
        look()
        if done == 3:
            if moves:
                seen.clear()
            cache.keep_on_host()
            look()

    ram_run = replace(make_run(model, guidance=guidance), host=HeadlessHost(on_step=step))
    model.blocks[-1].register_forward_pre_hook(look)
    assert torch.equal(ram_run.make(START, 0, step_cache=cache), kept)
    assert seen
    assert all(seen)
    assert cache.report == replace(expected, on_host=True)


@pytest.mark.parametrize("method", METHODS)
def test_heun_takes_one_decision_a_level(model, method):
    latents, report = sample(make_run(model, config(method), solver="heun"))
    assert (report.steps, report.passes) == (STEPS, 2 * STEPS - 1)
    assert 0 < report.skipped_steps < STEPS - 1
    # The first level has one call, all others two.
    assert report.skipped_passes == 2 * report.skipped_steps
    assert latents.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_every_video_starts_anew(model, method):
    run = make_run(model, config(method))
    first, second = (run.make(START, seed) for seed in (0, 1))
    assert torch.equal(run.make(START, 0), first)
    fresh = make_run(model, config(method))
    assert torch.equal(fresh.make(START, 1), second)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_finished_or_cancelled_video_stays(model, method):
    """A batch has a cache for every video, and what each keeps is as large as a video."""

    def tensors() -> list[torch.Tensor]:
        gc.collect()
        return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and thing.numel() >= 288]

    class Cancelled(Exception):  # noqa: N818
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Cancelled

    before = {id(tensor) for tensor in tensors()}
    cancelled = replace(make_run(model, config(method)), host=HeadlessHost(on_step=stop))
    caches = [cancelled.start_cache((3, 4, 6)), make_run(model, config(method)).start_cache((3, 4, 6))]
    with pytest.raises(Cancelled):
        cancelled.make(START, 0, step_cache=caches[0])
    report = sample(make_run(model, config(method)))[1]
    latents = make_run(model, config(method)).make(START, 0, step_cache=caches[1])
    model.inputs.clear()
    left = [tensor for tensor in tensors() if id(tensor) not in before and tensor is not latents]
    like_a_video = {(1, 18, 48), (1, 4, 3, 4, 6)}  # tokens and latents
    assert [tensor.shape for tensor in left if tuple(tensor.shape) in like_a_video] == []
    assert caches[1].report == report


@pytest.mark.parametrize("method", METHODS)
def test_inpainting_keeps_what_it_is_told_to(model, method):
    start = torch.randn(START.shape, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, 1, 1, 4, 6)
    mask[..., 3:] = 1
    latents, report = sample_from(make_run(model, config(method)), start, mask)
    plain, _ = sample_from(make_run(model), start, mask)
    assert report.skipped_steps > 0
    assert torch.allclose(latents[..., :3], start[..., :3], atol=1e-5)
    assert not torch.equal(latents[..., 3:], plain[..., 3:])
    exact, _ = sample_from(make_run(model, config(method, 0.0)), start, mask)
    assert torch.equal(exact, plain)


def sample_from(run: SampleRun, start, mask):
    cache = run.start_cache((3, 4, 6))
    return run.make(start, 0, mask, cache), cache and cache.report


@torch.no_grad()
@pytest.mark.parametrize("method", ["teacache", "first_block", "magcache"])
def test_a_clean_first_frame_is_modulated_by_itself(model, method):
    """Token replace: the cache sees the first block's real input, and its answers are those of the blocks."""
    inputs = tiny.transformer_inputs()
    plain = model(**inputs, clean_first_frame=True)
    seen = []
    layer = model.double_blocks[0].img_attn_qkv
    layer.product = Noting(seen)
    cache = config(method).begin_run(SIGMAS.tolist(), (48, 2, 2), 1024)
    model.inputs.clear()
    cache.begin(1.0, ("positive",))
    assert torch.equal(model(**inputs, clean_first_frame=True, cache=cache), plain)
    if method == "teacache":
        assert torch.equal(model.inputs[0], torch.cat(seen, dim=1))
    del layer.product
    level = SIGMAS.tolist()[3]
    cache.begin(level, ("positive",))
    again = model(**inputs, clean_first_frame=True, cache=cache)  # the same inputs: nothing moved
    assert cache.report.skipped_steps == 1
    assert tiny.relative_error(again, plain) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guidance", [CFG["no CFG"], CFG["in turn"]], ids=["no CFG", "in turn"])
def test_streamed_blocks_are_cut_short_and_go_on(monkeypatch, model, method, guidance):
    """Slots that are filled with garbage as soon as they are released: an answer computed in one would show it."""

    class Poisoned(StreamCopyEngine):
        def release(self, slot):
            super().release(slot)
            self.slots[slot].fill_(255)

    monkeypatch.setattr(block_stream, "StreamCopyEngine", Poisoned)
    home = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    expected, report = sample(make_run(model, config(method), guidance=guidance))
    for swap in (BlockSwap(2, 2), BlockSwap(1, 2), BlockSwap(2, 2, prefetch=0), BlockSwap(2, 0, prefetch=3)):
        offloader = Offloader(
            model,
            model.blocks,
            len(model.double_blocks),
            swap,
            copy_fn=lambda tensor, device: tensor.clone(),
            can_stream_fn=lambda device: True,
            aside=model.modulations,
        )
        offloader.load("cpu")
        for _ in range(2):
            latents, again = sample(make_run(model, config(method), guidance=guidance, source=offloader))
            assert torch.equal(latents, expected)
            assert again == report
        blocks = {name for name in home if name.split(".")[0] in ("double_blocks", "single_blocks")}
        if offloader.num_swapped == len(model.blocks):
            assert all(model.state_dict()[name].data_ptr() == home[name] for name in blocks)
        offloader.go_home()
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == home


def test_a_cache_takes_working_memory_for_every_branch(model):
    plain, cached, twice = (
        make_run(model, cache, guidance=guidance).working_bytes((3, 4, 6))
        for cache, guidance in (
            (None, CFG["no CFG"]),
            (config("teacache"), CFG["no CFG"]),
            (config("teacache"), CFG["in turn"]),
        )
    )
    image = 3 * 2 * 3 * 48 * 4
    assert cached - plain == pytest.approx((1 + RESERVE_SHARE) * 2 * image, abs=2)
    assert twice - plain == pytest.approx((1 + RESERVE_SHARE) * 3 * image, abs=2)


def test_magcache_without_a_curve_for_the_model_is_refused_before_the_run(model):
    with pytest.raises(InvalidSetting, match="--measure-ratios"):
        make_run(model, CacheConfig("magcache")).start_cache((3, 4, 6))

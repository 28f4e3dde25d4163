"""The sampler on the demo model, with few steps and small videos."""

from __future__ import annotations

import importlib
import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from graph import run, validate
from safetensors.torch import load_file

SCALING = 0.476986


@pytest.fixture(scope="module")
def plain(sample):
    """The run that others are compared with."""
    return sample()[0]["samples"]


@pytest.fixture
def errors(pack):
    return pack.hyvideo_lib.errors


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Numbers


def test_it_is_the_librarys_loop(plain, model, embeds, pack):
    sampling = pack.hyvideo_lib.sampling
    sigmas = sampling.make_sigmas(3, 3.0)
    velocity_fn = sampling.make_velocity_fn(
        model.model, embeds.positive, sigmas=sigmas, config=sampling.GuidanceConfig(embedded=2.0)
    )
    latents = sampling.denoise(velocity_fn, sampling.draw_noise((16, 2, 4, 4), [0]), sigmas)
    assert torch.equal(plain, latents / SCALING)


def test_latents_are_plain_float32_on_the_cpu(plain):
    assert (plain.shape, plain.dtype, plain.device.type) == ((1, 16, 2, 4, 4), torch.float32, "cpu")


def test_one_seed_gives_one_video(sample, plain):
    assert torch.equal(sample(seed=0)[0]["samples"], plain)
    assert not torch.equal(sample(seed=1)[0]["samples"], plain)


def test_a_batch_is_the_videos_of_consecutive_seeds(sample):
    both = sample(seed=2**64 - 1, latents={"samples": torch.zeros(2, 16, 2, 4, 4)})[0]["samples"]
    single = [sample(seed=seed)[0]["samples"] for seed in (2**64 - 1, 0)]
    assert torch.equal(both, torch.cat(single))


@pytest.mark.parametrize("name", ["steps", "guidance", "shift", "solver"])
def test_every_setting_acts(sample, plain, name, pack):
    solvers = [solver for solver in pack.hyvideo_lib.sampling.SOLVERS if solver != "euler"]
    values = {"steps": [2], "guidance": [8.0], "shift": [7.0], "solver": solvers}[name]
    for value in values:
        found = sample(**{name: value})[0]["samples"]
        assert found.isfinite().all()
        assert not torch.equal(found, plain), value


def test_what_else_is_in_the_latents_travels_on(sample, empty, plain):
    output = sample(latents={**empty, "batch_index": [3], "noise_mask": torch.ones(1, 1, 32, 32)})[0]
    assert output.keys() == {"batch_index", "samples"}
    assert torch.equal(output["samples"], plain)


def test_a_still_image_is_one_frame(sample):
    assert sample(latents={"samples": torch.zeros(1, 16, 4, 4)}, steps=1)[0]["samples"].shape == (1, 16, 1, 4, 4)


# Noise levels


def test_the_levels_that_were_used_come_out_and_give_the_same_video_again(sample, plain):
    levels = sample()[1]
    assert (len(levels), levels[0].item(), levels[-1].item()) == (4, 1.0, 0.0)
    again = sample(sigmas=levels, steps=50, shift=9.0, strength=0.3)
    assert torch.equal(again[0]["samples"], plain)
    assert torch.equal(again[1], levels)


@pytest.mark.parametrize("levels", [[0.0, 1.0], [1.0], [1.0, 1.0, 0.0], [2.0, 0.0], []])
def test_levels_that_do_not_fall_are_refused(sample, errors, levels):
    with pytest.raises(errors.InvalidSetting, match=r"\[invalid_setting\]$"):
        sample(sigmas=torch.tensor(levels))


# Video to video


def test_strength_says_how_much_is_left_of_the_video(sample):
    given = noise(1, 1, 16, 2, 4, 4)
    distances, levels = [], []
    for strength in (0.25, 0.5, 1.0):
        output = sample(latents={"samples": given}, strength=strength, steps=4)
        distances.append((output[0]["samples"] - given).norm().item())
        levels.append(len(output[1]) - 1)
    assert levels == [1, 2, 4]
    assert distances == sorted(distances)


def test_at_full_strength_nothing_is_left_of_the_video(sample, plain):
    assert torch.equal(sample(latents={"samples": noise(1, 1, 16, 2, 4, 4)})[0]["samples"], plain)


def test_the_given_latents_stay_as_they_are(sample):
    given = noise(1, 1, 16, 2, 4, 4)
    before = given.clone()
    sample(latents={"samples": given}, strength=0.5)
    assert torch.equal(given, before)


# Masks


def test_black_keeps_and_white_makes_anew(sample, plain):
    given = {"samples": noise(1, 1, 16, 2, 4, 4)}
    kept = sample(latents=given, mask=torch.zeros(1, 32, 32))[0]["samples"]
    assert (kept - given["samples"]).abs().max() < 1e-6
    assert torch.equal(sample(latents=given, mask=torch.ones(1, 32, 32))[0]["samples"], plain)


def test_half_a_mask_keeps_half_of_the_video(sample):
    given = {"samples": noise(1, 1, 16, 2, 4, 4)}
    mask = torch.zeros(32, 32)
    mask[:, 16:] = 1
    found = sample(latents=given, mask=mask)[0]["samples"]
    difference = (found - given["samples"]).abs()
    assert difference[..., :2].max() < 1e-6
    assert difference[..., 2:].mean() > 0.1


def test_a_mask_on_the_latents_counts_unless_there_is_another(sample, plain):
    given = {"samples": noise(1, 1, 16, 2, 4, 4), "noise_mask": torch.zeros(1, 1, 32, 32)}
    kept = sample(latents=given)[0]["samples"]
    assert (kept - given["samples"]).abs().max() < 1e-6
    assert torch.equal(sample(latents=given, mask=torch.ones(32, 32))[0]["samples"], plain)


def test_a_mask_of_another_length_is_refused(sample, errors):
    with pytest.raises(errors.InvalidSetting, match=r"The mask has 4 frames.*\[invalid_setting\]$"):
        sample(mask=torch.ones(4, 32, 32))


# Options


def test_rope_settings_act(sample, plain, pack):
    rope = pack.hyvideo_lib.transformer.RopeSettings
    assert torch.equal(sample(rope=rope())[0]["samples"], plain)
    assert not torch.equal(sample(rope=rope(scale=(1.0, 0.5, 1.0)))[0]["samples"], plain)


def test_cfg_in_one_pass_or_two_is_the_same_within_rounding(sample, plain, pack):
    config = pack.hyvideo_lib.sampling.GuidanceConfig
    one, two = (
        sample(guidance_options=config(cfg_scale=3.0, batched=batched))[0]["samples"] for batched in (True, False)
    )
    assert (one - two).abs().max() <= 1e-4 * one.abs().max()
    assert not torch.equal(one, plain)
    assert torch.equal(sample(guidance_options=config())[0]["samples"], plain)


def test_the_widget_decides_on_the_built_in_guidance(sample, pack):
    config = pack.hyvideo_lib.sampling.GuidanceConfig(embedded=50.0)
    assert torch.equal(sample(guidance=5.0, guidance_options=config)[0]["samples"], sample(guidance=5.0)[0]["samples"])


def test_cfg_without_a_negative_prompt_is_refused(sample, embeds, errors, pack):
    only = type(embeds)(embeds.positive, None, "video")
    config = pack.hyvideo_lib.sampling.GuidanceConfig(cfg_scale=3.0)
    with pytest.raises(errors.InvalidGuidance, match=r"negative prompt.*\[invalid_guidance\]$"):
        sample(embeds=only, guidance_options=config)


@pytest.mark.parametrize("method", ["teacache", "first_block", "easycache", "magcache"])
def test_a_cache_skips_steps_and_says_so_on_the_node(sample, plain, pack, texts, method):
    config = pack.hyvideo_lib.caches.CacheConfig
    assert torch.equal(sample(cache=config(method, 0.0))[0]["samples"], plain)
    said = texts()
    assert said[-1].endswith(", skipped 0 of 3 steps")
    found = sample(steps=8, cache=config(method, 0.5))[0]["samples"]
    told = texts()[-1]
    assert re.search(r", skipped [1-6] of 8 steps$", told)
    assert found.isfinite().all()
    assert not torch.equal(found, sample(steps=8)[0]["samples"])


def test_every_video_of_a_batch_has_a_cache_of_its_own(sample, pack, texts):
    config = pack.hyvideo_lib.caches.CacheConfig("teacache", 0.3)
    both = sample(seed=1, steps=6, cache=config, latents={"samples": torch.zeros(2, 16, 2, 4, 4)})[0]["samples"]
    assert texts()[-1].count("of 6 steps") == 2
    single = [sample(seed=seed, steps=6, cache=config)[0]["samples"] for seed in (1, 2)]
    assert torch.equal(both, torch.cat(single))


def test_magcache_is_refused_for_a_model_without_ratios(sample, model, pack, errors):
    curve = pack.hyvideo_lib.caches.MagCurve((1.0, 0.5), (1.0,))
    config = pack.hyvideo_lib.caches.CacheConfig
    sample(cache=config("magcache", curve=curve))  # the user's own
    begin = config("magcache").begin_run
    with pytest.raises(errors.InvalidSetting, match="there are none for a transformer of width 5"):
        begin([1.0, 0.0], (5, 1, 1), 64)


# Refusals


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"steps": 0}, "steps is 0, but must be at least 1."),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"shift": 0.0}, "shift is 0.0"),
        ({"solver": "magic"}, "solver is 'magic', but must be one of: euler"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"strength": 1.5}, "strength is 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_run(pack, inputs, said):
    assert said in validate(pack.nodes.sample.Sampler, **inputs)
    name = next(iter(inputs))
    others = dict.fromkeys(("steps", "guidance", "shift", "solver", "strength"))
    assert said in validate(pack.nodes.sample.Sampler, **{**others, name: inputs[name]})


def test_settings_over_wires_are_left_for_later(pack):
    inputs = dict.fromkeys(("steps", "guidance", "shift", "solver", "strength", "seed"))
    assert validate(pack.nodes.sample.Sampler, **inputs) is True


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"steps": 0}, "invalid_steps"),
        ({"shift": 0.0}, "invalid_setting"),
        ({"strength": 0.0}, "invalid_setting"),
        ({"guidance": -1.0}, "invalid_guidance"),
        ({"solver": "magic"}, "invalid_setting"),
        ({"seed": 2**64}, "invalid_seed"),
        ({"latents": {"samples": torch.zeros(1, 4, 2, 4, 4)}}, "invalid_setting"),
        ({"latents": {"samples": torch.zeros(1, 16, 2, 5, 4)}}, "invalid_size"),
    ],
)
def test_they_are_checked_again_in_the_run(sample, errors, inputs, code):
    with pytest.raises(errors.BadInput, match=rf"\[{code}\]$"):
        sample(**inputs)


def test_text_of_another_model_is_refused(sample, embeds, errors, pack):
    other = pack.hyvideo_lib.text.TextEmbeds(
        torch.zeros(1, 2, 4096), torch.ones(1, 2).long(), torch.zeros(1, 768), (0,)
    )
    with pytest.raises(errors.InvalidSetting, match=r"4096 numbers a token and 768.*192 and 128.*\[invalid_setting\]$"):
        sample(embeds=type(embeds)(other, None, "video"))


def test_every_video_of_a_batch_may_have_its_own_prompt(sample, plain, embeds, errors, pack):
    two = replace(embeds, positive=embeds.positive.repeat(2))
    both = sample(embeds=two, seed=0, latents={"samples": torch.zeros(2, 16, 2, 4, 4)})[0]["samples"]
    assert torch.equal(both[:1], plain)
    with pytest.raises(errors.InvalidSetting, match=r"2 prompts were encoded, but there are 3 videos to make\."):
        sample(embeds=two, latents={"samples": torch.zeros(3, 16, 2, 4, 4)})


def test_what_a_batch_has_made_is_kept_when_a_later_video_fails(sample, plain, embeds, errors, folder):
    broken = replace(embeds, positive=embeds.positive.repeat(3))
    broken.positive.pooled_embeds[2] = float("inf")
    with pytest.raises(errors.NonFiniteOutput, match=r"The latents are kept in \S+output.*, \S+output.*\.latent\."):
        sample(embeds=broken, latents={"samples": torch.zeros(3, 16, 2, 4, 4)})
    kept = [load_file(path)["latent_tensor"] for path in folder("output").iterdir()]
    assert len(kept) == 2
    assert any(torch.equal(latents, plain) for latents in kept)
    assert list(folder("temp").iterdir()) == []


def test_what_a_batch_has_made_is_kept_when_it_is_cancelled(sample, plain, bars, mm, folder):
    """ComfyUI has nothing of a node that was not done."""
    shown = itertools.count(1)
    bars.on_update = lambda value, total: mm.interrupt_current_processing() if next(shown) == 5 else None
    with pytest.raises(mm.InterruptProcessingException):
        sample(latents={"samples": torch.zeros(2, 16, 2, 4, 4)})
    (kept,) = folder("output").iterdir()
    assert torch.equal(load_file(kept)["latent_tensor"], plain)
    assert list(folder("temp").iterdir()) == []


def test_a_batch_that_ends_well_leaves_no_files(sample, folder):
    sample(latents={"samples": torch.zeros(2, 16, 2, 4, 4)})
    assert [*folder("temp").iterdir(), *folder("output").iterdir()] == []


def test_a_video_that_would_be_black_stops_at_its_step(sample, embeds, errors, pack):
    broken = embeds.positive
    broken = pack.hyvideo_lib.text.TextEmbeds(
        broken.text_embeds, broken.text_mask, torch.full_like(broken.pooled_embeds, float("inf")), broken.tokens_cut
    )
    with pytest.raises(errors.NonFiniteOutput, match=r"^Step 1 of 3.*\[non_finite\]$"):
        sample(embeds=type(embeds)(broken, None, "video"))


# Progress, previews, cancelling, memory


def test_every_step_moves_the_bar_and_the_text(sample, bars, texts):
    sample()
    assert bars.shown == [(1, 3), (2, 3), (3, 3)]
    assert bars.nodes == {"7"}
    shown = texts()
    assert shown[0] == "sampling"
    assert [text.split(",")[0] for text in shown[1:-1]] == ["sampling 1/3", "sampling 2/3", "sampling 3/3"]
    assert "0 blocks swapped, attention sdpa" in shown[-1]  # the report


def test_previews_are_shown_where_the_user_wants_them(sample, bars, plain):
    import latent_preview

    sample()
    assert bars.previews == []
    latent_preview.has_previews = True
    found = sample()[0]["samples"]
    assert len(bars.previews) == 3
    kind, picture, _ = bars.previews[-1]
    assert (kind, picture.shape) == ("JPEG", (4, 4, 3))
    assert torch.equal(found, plain)


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_cancelled_run_leaves_no_trace(sample, plain, bars, mm, when):
    """Cancelled before the first step, or between two, or in the middle of one; the next run is as a fresh one."""
    if when:
        bars.on_update = lambda value, total: mm.interrupt_current_processing() if value == when else None
    else:
        mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        sample()
    assert len(bars.shown) == when
    bars.on_update = lambda value, total: None
    assert torch.equal(sample()[0]["samples"], plain)


def test_a_press_within_a_step_is_heard_at_the_next_block(sample, mm, model, monkeypatch):
    calls = []
    through = model.offloader.through

    def press(blocks):
        for block in through(blocks):
            calls.append(block)
            if len(calls) == 2:
                mm.interrupt_current_processing()
            yield block

    monkeypatch.setattr(type(model.offloader), "through", lambda self, blocks: press(blocks))
    with pytest.raises(mm.InterruptProcessingException):
        sample()
    assert len(calls) <= 3


def test_a_hook_that_cancels_by_itself_is_heard(sample, bars, mm, plain):
    """ComfyUI's own hook raises while the bar is moved."""

    def stop(value, total):
        raise mm.InterruptProcessingException

    bars.on_update = stop
    with pytest.raises(mm.InterruptProcessingException):
        sample()
    bars.on_update = lambda value, total: None
    assert torch.equal(sample()[0]["samples"], plain)


@pytest.mark.parametrize("error", [RuntimeError("other"), ValueError("other")])
def test_other_peoples_errors_pass_untouched_and_leave_no_trace(sample, plain, model, error, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model.model.final_layer, "forward", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)) as caught:
            sample()
    assert caught.value is error
    assert torch.equal(sample()[0]["samples"], plain)


def throwing(error, forward, times=math.inf):
    """Raises the error so many times, but not where only sizes are reckoned with."""
    calls = itertools.count()

    def throw(x, *args):
        if not x.is_meta and next(calls) < times:
            raise error
        return forward(x, *args)

    return throw


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), MemoryError("no room")])
def test_memory_that_never_suffices_is_comfyuis_error_with_our_numbers(sample, plain, model, mm, error, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model.model.final_layer, "forward", throwing(error, model.model.final_layer.forward))
        with pytest.raises(mm.OOM_EXCEPTION, match=r"no room.*of weights.*heads in 2 groups.*\[out_of_memory\]"):
            sample()
    assert torch.equal(sample()[0]["samples"], plain)


@pytest.fixture
def unsettled(pack, model):
    """The same model, of which no run ran out of memory."""
    return replace(model, settled=pack.hyvideo_lib.pipeline.SettledRuns())


def test_memory_that_suffices_the_second_time_gives_the_same_video(sample, plain, unsettled, texts, monkeypatch):
    final_layer = unsettled.model.final_layer
    monkeypatch.setattr(
        final_layer, "forward", throwing(torch.OutOfMemoryError("no room"), final_layer.forward, times=1)
    )
    found = sample(model=unsettled)[0]["samples"]
    assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert "memory ran out, so: heads in 2 groups" in texts()[-1]


def test_what_ran_out_in_one_prompt_is_not_tried_again_in_the_next(sample, plain, unsettled, monkeypatch):
    forward, failed = unsettled.model.forward, []

    def short(*args, lean, **kwargs):
        if lean.head_groups == 1:
            failed.append(lean)
            raise torch.OutOfMemoryError("no room")
        return forward(*args, lean=lean, **kwargs)

    monkeypatch.setattr(unsettled.model, "forward", short)
    for _ in range(3):
        found = sample(model=unsettled)[0]["samples"]
        assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert len(failed) == 1
    sample(model=unsettled, latents={"samples": torch.zeros(1, 16, 1, 4, 4)})  # of another size nothing is known
    assert len(failed) == 2


def test_another_seed_moves_no_weights(sample, model, mm, monkeypatch):
    sample()
    copied = []
    part = type(model.offloader._fixed)
    move = part.move
    monkeypatch.setattr(part, "move", lambda self, device: (copied.append(self), move(self, device)))
    sample(seed=5)
    sample(seed=6, steps=1)
    assert copied == []
    assert mm.loaded_models() == [model.managed]


def test_weights_leave_the_device_when_comfyui_asks_and_come_back(sample, plain, model, mm):
    sample(steps=1)
    assert model.managed.loaded_size() == model.managed.model_size()
    mm.unload_all_models()
    assert model.managed.loaded_size() == 0
    assert model.managed.current_loaded_device() == torch.device("cpu")
    assert torch.equal(sample()[0]["samples"], plain)


@pytest.mark.parametrize("blocks", [(1, 3), (-1, 6), (99, 99), (0, 0)])
def test_swapped_blocks_give_the_same_video_bit_for_bit(pack, sample, plain, blocks, empty):
    swap = run(pack.nodes.options.BlockSwapNode, double_blocks=blocks[0], single_blocks=blocks[1])[0]
    handle = run(pack.nodes.load.LoadTransformer, block_swap=swap)[0]
    assert torch.equal(sample(model=handle)[0]["samples"], plain)
    swapped = min(2, max(0, blocks[0])) + min(6, blocks[1])
    assert handle.offloader.num_swapped == swapped
    assert (handle.managed.loaded_size() < handle.managed.model_size()) == bool(swapped)


def test_a_small_card_keeps_blocks_at_home_and_gives_the_same_video(sample, plain, model, mm):
    mm.pretend(limit=model.managed.model_size() // 2 + 6 * 2**20)
    assert torch.equal(sample()[0]["samples"], plain)
    assert 0 < model.managed.loaded_size() < model.managed.model_size()
    assert model.offloader.num_swapped > 0


# Attention


def test_the_models_attention_is_what_runs(pack, sample, plain, monkeypatch):
    theirs = importlib.import_module("comfy.ldm.modules.attention")
    calls = []
    original = theirs.optimized_attention
    monkeypatch.setattr(theirs, "optimized_attention", lambda *a, **k: calls.append(1) or original(*a, **k))
    model = run(pack.nodes.load.LoadTransformer, attention="comfyui")[0]
    calls.clear()
    found = sample(model=model)[0]["samples"]
    assert calls
    assert (found - plain).abs().max() <= 1e-4

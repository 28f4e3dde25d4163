from __future__ import annotations

import pytest
from graph import run, validate


def test_rope_settings_are_as_the_widgets_say(pack):
    settings = run(pack.nodes.options.Rope, time_scale=0.5, width_scale=2.0, extrapolate=True)[0]
    assert (settings.extrapolate, settings.scale) == (True, (0.5, 1.0, 2.0))
    assert run(pack.nodes.options.Rope)[0] == pack.hyvideo_lib.transformer.RopeSettings()


def test_guidance_is_as_the_widgets_say(pack):
    config = run(pack.nodes.options.Guidance, cfg_scale=4.0, start=0.1, end=0.6, rescale=0.7, batched=False)[0]
    assert (config.cfg_scale, config.cfg_start, config.cfg_end) == (4.0, 0.1, 0.6)
    assert (config.rescale, config.batched) == (0.7, False)
    assert not run(pack.nodes.options.Guidance)[0].uses_cfg


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"cfg_scale": 0.5}, "cfg_scale"),
        ({"cfg_scale": 31.0}, "cfg_scale"),
        ({"cfg_scale": float("nan")}, "cfg_scale"),
        ({"rescale": 1.5}, "rescale"),
        ({"start": 0.5, "end": 0.5}, "start must lie before the end"),
        ({"start": 0.9, "end": 0.1}, "start must lie before the end"),
    ],
)
def test_guidance_that_cannot_be_is_refused_before_the_run(pack, inputs, said):
    assert said in validate(pack.nodes.options.Guidance, **inputs)


def test_one_end_over_a_wire_leaves_the_other_to_its_own_limits(pack):
    assert validate(pack.nodes.options.Guidance, start=0.9, end=None) is True
    assert "start" in validate(pack.nodes.options.Guidance, start=1.9, end=None)


def test_guidance_is_checked_again_in_the_run(pack):
    with pytest.raises(pack.hyvideo_lib.errors.InvalidGuidance, match=r"\[invalid_guidance\]$"):
        run(pack.nodes.options.Guidance, start=0.9, end=0.1)


def test_block_swap_is_as_the_widgets_say(pack):
    swap = run(pack.nodes.options.BlockSwapNode, double_blocks=3, single_blocks=0, prefetch=2)[0]
    assert (swap.double_blocks, swap.single_blocks, swap.prefetch) == (3, 0, 2)
    assert run(pack.nodes.options.BlockSwapNode)[0] == pack.hyvideo_lib.memory.BlockSwap()


def test_compiling_is_as_the_widgets_say_and_travels_on_the_model(pack):
    given = run(pack.nodes.options.Compile, mode="max-autotune-no-cudagraphs", dynamic=False, scope="pieces")[0]
    assert (given.backend, given.mode, given.dynamic) == ("inductor", "max-autotune-no-cudagraphs", False)
    assert given.scope == "pieces"
    default = run(pack.nodes.options.Compile)[0]
    assert default == pack.hyvideo_lib.transformer.CompileConfig()
    model = run(pack.nodes.load.LoadTransformer, compile=default)[0]
    assert model.compiling is default
    assert "compiled" in repr(model)
    assert "mode is 'fast'" in validate(pack.nodes.options.Compile, mode="fast")
    assert "scope is 'model'" in validate(pack.nodes.options.Compile, scope="model")


def test_a_cache_is_as_the_widgets_say(pack):
    config = pack.hyvideo_lib.caches.CacheConfig
    node = pack.nodes.options.Cache
    made = run(node, method="easycache", threshold=0.05, start=0.2, end=0.9, max_skips=3, residuals="host")[0]
    assert made == config("easycache", 0.05, 0.2, 0.9, 3, True)
    assert run(node)[0] == config()
    text = '{"levels": [1.0, 0.5, 0.1], "ratios": [1.02, 0.99], "steps": 3}'
    curve = pack.hyvideo_lib.caches.MagCurve((1.0, 0.5, 0.1), (1.02, 0.99))
    assert run(node, method="magcache", ratios=f"\n{text}\n")[0] == config("magcache", curve=curve)
    assert run(node, threshold=0.0, start=0.0, max_skips=0)[0] == config(threshold=0.0, start=0.0, max_skips=0)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"method": "teacup"}, "method is 'teacup', but must be one of: teacache"),
        ({"threshold": -2.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"start": 0.9, "end": 0.5}, "start before the end"),
        ({"method": "magcache", "end": 0.1}, "start before the end"),
        ({"max_skips": -2}, "max_skips"),
        ({"residuals": "disk"}, "residuals is 'disk'"),
        ({"ratios": "{}"}, "ratios are for magcache, but method is teacache"),
        ({"method": "magcache", "ratios": "[1.0"}, "ratios holds no magnitude ratios (JSONDecodeError"),
        ({"method": "magcache", "ratios": '{"levels": [1, 2], "ratios": [1]}'}, "the levels must fall"),
    ],
)
def test_a_cache_that_cannot_be_is_refused_before_the_run(pack, inputs, said):
    assert said in validate(pack.nodes.options.Cache, **inputs)


def test_the_cache_s_tooltips_name_the_numbers_of_the_table(pack):
    inputs = {entry.id: entry for entry in pack.nodes.options.Cache.define_schema().inputs}
    for name, method in pack.hyvideo_lib.caches.METHODS.items():
        assert f"{method.threshold:g} for {name}" in inputs["threshold"].tooltip
        assert not method.start or f"{method.start:g} for {name}" in inputs["start"].tooltip
        assert not method.max_skips or f"{method.max_skips} for {name}" in inputs["max_skips"].tooltip.replace(
            "\n", " "
        )

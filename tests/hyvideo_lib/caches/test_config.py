from __future__ import annotations

import pytest

from hyvideo_lib.caches import METHODS, CacheConfig, MagCurve
from hyvideo_lib.caches.magcache import CURVES
from hyvideo_lib.errors import InvalidSetting

LEVELS = [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "teacup"}, "cache is 'teacup', but must be one of: teacache, first_block, easycache, magcache"),
        ({"threshold": -0.1}, "threshold is -0.1, but must be 0 or more"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": float("inf")}, "threshold is inf"),
        ({"start": 0.6, "end": 0.6}, "start before the end"),
        ({"start": -0.1}, "fractions of the run"),
        ({"end": 1.5}, "fractions of the run"),
        ({"start": float("nan")}, "fractions of the run"),
        ({"method": "magcache", "end": 0.1}, "start is 0.2 and its end 0.1"),
        ({"max_skips": -1}, "max_skips is -1"),
    ],
)
def test_values_that_cannot_be_are_refused(values, said):
    with pytest.raises(InvalidSetting, match=said):
        CacheConfig(**values)


def test_settings_are_the_numbers_that_held():
    assert CacheConfig("magcache", end=0.9).settings() == {
        "method": "magcache",
        "threshold": 0.12,
        "start": 0.2,
        "end": 0.9,
        "max_skips": 4,
        "on_host": False,
        "curve": "built in",
    }


def test_settings_tell_curves_apart():
    own = [MagCurve((1.0, 0.5, 0.2), (1.02, ratio)) for ratio in (0.99, 0.98)]
    names = [CacheConfig("magcache", curve=curve).settings()["curve"] for curve in own]
    assert names == ["a6f014476dd8", "c698bbf809d6"]
    assert CacheConfig("teacache", on_host=True).settings()["curve"] is None
    assert CacheConfig("teacache", on_host=True).settings()["on_host"] is True
    reports = [CacheConfig("magcache").begin_run(LEVELS, (3072, 20, 40), pixels).report for pixels in (2**19, 2**20)]
    assert all(report.curve.startswith("built in ") for report in reports)
    assert reports[0].curve != reports[1].curve
    assert CacheConfig("magcache", curve=own[0]).begin_run(LEVELS, (1, 1, 1), 64).report.curve == names[0]


@pytest.mark.parametrize("name", METHODS)
def test_every_run_has_a_state_of_its_own(name):
    config = CacheConfig(name)
    one, other = (config.begin_run(LEVELS, (256, 2, 6), 4096) for _ in range(2))
    assert one is not other
    assert one.report.method == name
    assert one.report.steps == 0


def test_memory_counts_the_branches_and_is_ram_where_it_waits_there():
    sizes = (3072, 118_800, 2)
    wide = 3072 * 118_800 * 2
    assert {name: CacheConfig(name).device_bytes(*sizes, branches=1) / wide for name in METHODS} == {
        "teacache": 2,
        "first_block": 3,
        "easycache": 0,
        "magcache": 1,
    }
    of_two = {"teacache": 3, "first_block": 4, "easycache": 0, "magcache": 2}
    for name, count in of_two.items():
        kept, away = CacheConfig(name), CacheConfig(name, on_host=True)
        assert (kept.device_bytes(*sizes, branches=2), kept.host_bytes(*sizes, branches=2)) == (count * wide, 0)
        assert (away.device_bytes(*sizes, branches=2), away.host_bytes(*sizes, branches=2)) == (0, count * wide)


def test_magcache_takes_the_curve_of_the_model_and_the_nearest_size():
    def ratio_of(pixels, model=(3072, 20, 40), **more):
        cache = CacheConfig("magcache", **more).begin_run(LEVELS, model, pixels)
        return cache.rule_fn(cache.place)._curve

    small, large, demo = (row.curve for row in CURVES)
    assert ratio_of(544 * 960) is small
    assert ratio_of(480 * 848) is small
    assert ratio_of(720 * 1280) is large
    assert ratio_of(64 * 64, (256, 2, 6)) is demo
    assert ratio_of(720 * 1280, curve=demo) is demo


def test_magcache_without_ratios_for_the_model_says_how_to_measure_them():
    with pytest.raises(InvalidSetting, match=r"width 48 with 2 \+ 2 blocks.*--measure-ratios FILE"):
        CacheConfig("magcache").begin_run(LEVELS, (48, 2, 2), 4096)

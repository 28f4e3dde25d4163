"""Magnitude curves: read, written, interpolated, measured."""

from __future__ import annotations

import json
import math

import pytest
import torch

from hyvideo_lib.caches import MagCurve, Measurement, load_curve, save_curve
from hyvideo_lib.caches.magcache import CURVES
from hyvideo_lib.errors import InvalidSetting, OutputExists
from hyvideo_lib.sampling import make_sigmas

CURVE = MagCurve((1.0, 0.8, 0.4), (1.2, 0.5))


def test_between_its_own_levels_a_curve_gives_its_ratios():
    assert CURVE.between(1.0, 0.8) == pytest.approx(1.2)
    assert CURVE.between(0.8, 0.4) == pytest.approx(0.5)
    assert CURVE.between(1.0, 0.4) == pytest.approx(0.6)
    for row in CURVES:
        steps = zip(row.curve.levels, row.curve.levels[1:], row.curve.ratios, strict=False)
        assert all(row.curve.between(a, b) == pytest.approx(ratio, rel=1e-9) for a, b, ratio in steps)


def test_between_levels_it_is_log_linear_and_beyond_them_constant():
    assert CURVE.between(0.8, 0.6) == pytest.approx(math.sqrt(0.5))
    assert CURVE.between(0.9, 0.6) == pytest.approx(math.sqrt(1.2) * math.sqrt(0.5))
    assert CURVE.between(0.4, 0.1) == 1.0
    assert MagCurve((0.9, 0.5), (2.0,)).between(1.0, 0.9) == 1.0


def test_the_published_curves_are_whole():
    assert [len(row.curve.ratios) for row in CURVES] == [49, 49, 19]
    assert CURVES[0].curve.levels == tuple(make_sigmas(50, 7.0)[:-1].tolist())
    assert CURVES[0].curve.ratios[-1] == 0.76592
    assert CURVES[1].curve.ratios[:2] == (1.0754, 1.27807)


@pytest.mark.parametrize(
    ("levels", "ratios"),
    [((1.0,), ()), ((1.0, 0.5), (1.0, 1.0)), ((0.5, 1.0), (1.0,)), ((1.0, 0.5), (0.0,)), ((1.0, 0.5), (math.nan,))],
)
def test_curves_that_cannot_be_are_refused(levels, ratios):
    with pytest.raises(InvalidSetting, match="Measure them again"):
        MagCurve(levels, ratios)


def test_a_curve_comes_back_from_its_file(tmp_path):
    path = tmp_path / "ratios.json"
    save_curve(path, CURVE, {"steps": 3})
    assert load_curve(path) == CURVE
    assert json.loads(path.read_text())["steps"] == 3
    with pytest.raises(OutputExists):
        save_curve(path, CURVE)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"levels": [1, 0.5], "ratios": ["x"]}', "[" * 100_000])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "ratios.json"
    path.write_text(text)
    with pytest.raises(InvalidSetting, match=r"ratios\.json holds no magnitude ratios"):
        load_curve(path)
    with pytest.raises(InvalidSetting, match="holds no magnitude ratios"):
        load_curve(tmp_path / "missing.json")


def test_measuring_averages_the_ratios_of_the_tokens_norms():
    levels = make_sigmas(4, 3.0).tolist()
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(2, 4, 2, 3000, 5, generator=generator)  # runs, levels, items, tokens, width
    measurement = Measurement()
    for run in added:
        for level, residual in zip(levels, run, strict=False):
            measurement.begin(level, ("positive",))
            img = torch.randn(2, 3000, 5, generator=generator)
            assert measurement.before_blocks(img, lambda: torch.ones(1)) is None
            measurement.after_blocks(img + residual)
            if level != levels[0]:  # a second call at the level, as Heun's, does not count
                measurement.begin(level, ("positive",))
                measurement.before_blocks(img, lambda: torch.ones(1))
                measurement.after_blocks(img + 9 * residual)
    norms = added.double().pow(2).sum(-1).sqrt()
    expected = (norms[:, 1:] / norms[:, :-1]).mean((0, 2, 3)).tolist()
    curve = measurement.curve()
    assert curve.levels == tuple(levels[:-1])
    assert curve.ratios == pytest.approx(expected, rel=1e-3)


def test_a_single_step_measures_nothing():
    measurement = Measurement()
    measurement.begin(1.0, ("positive",))
    measurement.before_blocks(torch.ones(1, 2, 2), lambda: torch.ones(1))
    measurement.after_blocks(torch.ones(1, 2, 2))
    with pytest.raises(InvalidSetting, match="over two steps or more"):
        measurement.curve()


def measured_run(measurement, adds):
    """adds: of every level, how much each branch that comes there gets of the blocks."""
    for level, branches in zip(make_sigmas(len(adds), 3.0).tolist(), adds, strict=False):
        for branch, added in reversed(branches.items()):
            measurement.begin(level, (branch,), tuple(branches))
            measurement.before_blocks(torch.zeros(1, 3, 2), lambda: torch.ones(1))
            measurement.after_blocks(torch.full((1, 3, 2), added))
    measurement.release()


def test_a_level_averages_the_branches_that_it_has():
    measurement = Measurement()
    adds = [
        {"positive": 1.0},
        {"negative": 5.0, "positive": 2.0},
        {"negative": 20.0, "positive": 4.0},
        {"positive": 4.0},
    ]
    measured_run(measurement, adds)
    assert measurement.curve().ratios == (2.0, 3.0, 1.0)


def test_a_run_that_failed_counts_as_far_as_it_came_and_other_levels_are_refused():
    measurement = Measurement()
    measured_run(measurement, [{"positive": 1.0}, {"positive": 2.0}])
    assert measurement.curve().ratios == (2.0,)
    measurement.begin(1.0, ("positive",))
    measurement.before_blocks(torch.zeros(1, 3, 2), lambda: torch.ones(1))
    measurement.after_blocks(torch.ones(1, 3, 2))
    assert measurement.curve().ratios == (2.0,)
    measured_run(measurement, [{"positive": 1.0}] * 3)
    with pytest.raises(InvalidSetting, match="the same in every video"):
        measurement.curve()

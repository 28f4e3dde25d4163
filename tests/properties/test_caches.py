"""What holds of step caches whatever the drift, the limits and the branches."""

from __future__ import annotations

import pytest
import torch
from apart import Apart
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.caches import METHODS, CacheConfig, MagCurve
from hyvideo_lib.caches.place import CopyFn, copy_to
from hyvideo_lib.sampling import make_sigmas

DRIFTS = st.lists(st.floats(-0.9, 3.0), min_size=2, max_size=12)


@st.composite
def curves(draw) -> MagCurve:
    levels = sorted(draw(st.sets(st.integers(1, 1000), min_size=2, max_size=8)), reverse=True)
    ratios = [draw(st.floats(0.01, 100)) for _ in levels[1:]]
    return MagCurve(tuple(level / 1000 for level in levels), tuple(ratios))


def passes(
    config: CacheConfig, drifts: list[float], branches: tuple[str, ...], copy_fn: CopyFn = copy_to
) -> list[tuple[bool, torch.Tensor]]:
    """A pass at every level: whether it was skipped, and what came of it. Every pass adds its own number."""
    levels = make_sigmas(len(drifts), 3.0).tolist()
    cache = config.begin_run(levels, (256, 2, 6), 64 * 64, copy_fn)
    value, found = 1.0, []
    for step, drift in enumerate(drifts):
        value *= 1 + drift
        img = torch.full((len(branches), 3, 4), value)
        cache.begin(levels[step], branches)
        known = cache.before_call(img)
        known = cache.before_blocks(img, lambda img=img: 2 * img) if known is None else known
        known = cache.after_first(img * 1.5) if known is None else known
        if known is None:
            cache.after_blocks(img + step)
            cache.after_call(img + step)
        found.append((known is not None, known))
    report = cache.report
    assert report.skipped_passes == report.skipped_steps == sum(skipped for skipped, _ in found)
    assert report.passes == report.steps == len(drifts)
    return found


@pytest.mark.parametrize("method", METHODS)
@given(
    drifts=DRIFTS,
    threshold=st.floats(0, 10),
    start=st.floats(0, 0.5),
    end=st.floats(0.51, 1),
    most=st.integers(0, 4),
    branches=st.sampled_from([("positive",), ("negative", "positive")]),
)
def test_ends_are_computed_and_limits_hold(method, drifts, threshold, start, end, most, branches):
    found = [skipped for skipped, _ in passes(CacheConfig(method, threshold, start, end, most), drifts, branches)]
    assert not found[0]
    assert not found[-1]
    steps = len(found)
    assert all(start <= (step + 0.5) / steps <= end for step, skipped in enumerate(found) if skipped)
    runs = "".join("s" if skipped else " " for skipped in found).split()
    assert not most or max(map(len, runs), default=0) <= most
    assert threshold or not any(found)


@pytest.mark.parametrize("method", METHODS)
@given(drifts=DRIFTS, threshold=st.floats(0.01, 10))
def test_a_batch_of_two_equal_branches_is_skipped_as_one_is(method, drifts, threshold):
    one = passes(CacheConfig(method, threshold), drifts, ("positive",))
    both = passes(CacheConfig(method, threshold), drifts, ("negative", "positive"))
    for (skipped, img), (skipped_too, pair) in zip(one, both, strict=True):
        assert skipped == skipped_too
        assert not skipped or torch.equal(pair, torch.cat([img, img]))


@pytest.mark.parametrize("method", METHODS)
@given(drifts=DRIFTS, threshold=st.floats(0.01, 10))
def test_what_waits_in_ram_answers_the_same(method, drifts, threshold):
    kept = passes(CacheConfig(method, threshold), drifts, ("positive",))
    away = passes(CacheConfig(method, threshold, on_host=True), drifts, ("positive",), Apart())
    for (skipped, img), (skipped_too, other) in zip(kept, away, strict=True):
        assert skipped == skipped_too
        assert not skipped or torch.equal(img, other)


@given(curves(), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_curve_s_ratios_multiply(curve, sigmas):
    high, middle, low = sorted(sigmas, reverse=True)
    assert curve.between(high, middle) * curve.between(middle, low) == pytest.approx(curve.between(high, low), rel=1e-9)
    assert curve.between(high, high) == 1.0

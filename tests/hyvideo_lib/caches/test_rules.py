"""Each method on a sequence whose drift is known: the steps it skips are those that its formula, worked out here on its
own, says. Synthetic tokens are shown to the caches as the transformer shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from apart import kept_by

from hyvideo_lib.caches import METHODS, CacheConfig, MagCurve, Measurement
from hyvideo_lib.caches.drift import relative_change
from hyvideo_lib.sampling import make_sigmas

STEPS = 24
LEVELS = make_sigmas(STEPS, 5.0).tolist()
TEACACHE = [7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02]


def tokens(value: float | torch.Tensor, batch: int = 1) -> torch.Tensor:
    """[B, 6, 4] of one number, or of one for each item."""
    return torch.ones(batch, 6, 4) * torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


def begin(config: CacheConfig):
    return config.begin_run(LEVELS, (256, 2, 6), 64 * 64)


def pass_through_blocks(cache, before, modulated, after_first, after) -> tuple[bool, torch.Tensor]:
    """What the transformer does around its blocks: (was skipped, image tokens after them)."""
    known = cache.before_blocks(before.clone(), lambda: modulated)
    if known is None:
        known = cache.after_first(after_first.clone())
    if known is not None:
        return True, known
    cache.after_blocks(after)
    return False, after


def skipped_steps(cache, befores, modulateds, after_firsts) -> list[int]:
    """Which steps were skipped; the blocks always add 10 to their input, and so must what stands for them."""
    found = []
    for step, (a, b, c) in enumerate(zip(befores, modulateds, after_firsts, strict=True)):
        cache.begin(LEVELS[step], ("positive",))
        was_skipped, img = pass_through_blocks(cache, a, b, c, a + 10)
        assert torch.allclose(img, a + 10, atol=1e-5)
        found += [step] if was_skipped else []
    return found


def changes(seed: int = 3) -> list[float]:
    """Relative changes from step to step, of the sizes that occur."""
    return np.random.default_rng(seed).uniform(0.005, 0.25, STEPS - 1).tolist()


@pytest.mark.parametrize("threshold", [0.1, 0.15, 0.3, 1.0])
def test_teacache_adds_up_its_polynomial_of_each_step_s_change(threshold):
    values = np.cumprod([1.0, *(1 + np.array(changes()))])
    expected, drift = [], 0.0
    for step in range(1, STEPS):
        drift += np.polyval(TEACACHE, abs(values[step] - values[step - 1]) / values[step - 1])
        if drift < threshold and step < STEPS - 1:
            expected.append(step)
        else:
            drift = 0.0
    plain = [tokens(step) for step in range(STEPS)]
    found = skipped_steps(begin(CacheConfig("teacache", threshold)), plain, map(tokens, values), plain)
    assert found == expected
    assert 0 < len(found) < STEPS - 2


@pytest.mark.parametrize("threshold", [0.06, 0.2, 0.5])
def test_first_block_compares_with_the_last_computed_step(threshold):
    residuals = np.cumprod([1.0, *(1 + np.array(changes()))])
    expected, reference = [], residuals[0]
    for step in range(1, STEPS):
        if abs(residuals[step] - reference) / reference < threshold and step < STEPS - 1:
            expected.append(step)
        else:
            reference = residuals[step]
    cache = begin(CacheConfig("first_block", threshold))
    found = []
    for step, residual in enumerate(residuals):
        cache.begin(LEVELS[step], ("positive",))
        before = tokens(3.0 * step)
        first = before + tokens(residual)
        # All blocks but the first add 7, which is what may be kept; the first is always computed anew.
        was_skipped, img = pass_through_blocks(cache, before, before, first, first + 7)
        assert torch.allclose(img, first + 7, atol=1e-4)
        found += [step] if was_skipped else []
    assert found == expected
    assert 0 < len(found) < STEPS - 2


@pytest.mark.parametrize(("threshold", "most"), [(0.12, 4), (0.24, 6), (0.06, 2), (5.0, 3)])
def test_magcache_multiplies_ratios_and_adds_up_their_distance_from_one(threshold, most):
    ratios = np.random.default_rng(1).uniform(0.93, 1.06, STEPS - 1)
    curve = MagCurve(tuple(LEVELS[:-1]), tuple(ratios))
    expected, product, error, in_a_row = [], 1.0, 0.0, 0
    for step in range(1, STEPS):
        product *= ratios[step - 1]
        error += abs(1 - product)
        is_open = step + 0.5 >= 0.2 * STEPS and step < STEPS - 1  # by the middle of a step
        if is_open and error <= threshold and in_a_row < most:
            expected.append(step)
            in_a_row += 1
        else:
            product, error, in_a_row = 1.0, 0.0, 0
    plain = [tokens(step) for step in range(STEPS)]
    cache = begin(CacheConfig("magcache", threshold, max_skips=most, curve=curve))
    found = skipped_steps(cache, plain, plain, plain)
    assert found == expected
    assert 0 < len(found) < STEPS - 5


@pytest.mark.parametrize("threshold", [0.025, 0.05, 0.2])
def test_easycache_follows_the_rate_between_the_last_two_computed_calls(threshold):
    generator = np.random.default_rng(2)
    inputs = np.cumsum(generator.uniform(0.02, 0.1, STEPS)) + 1
    outputs = np.cumsum(generator.uniform(0.01, 0.2, STEPS)) + 4
    expected, rate, drift, computed = [], None, 0.0, None
    for step in range(STEPS):
        is_open = step + 0.5 >= 0.1 * STEPS and step < STEPS - 1
        if rate is not None:
            drift += rate * (inputs[step] - inputs[step - 1])
        if is_open and rate is not None and drift < threshold:
            expected.append(step)
            continue
        if computed is not None:
            rate = (outputs[step] - outputs[computed]) / (inputs[step] - inputs[computed]) / outputs[step]
        computed, drift = step, 0.0
    cache = begin(CacheConfig("easycache", threshold))
    found, last = [], 0
    for step in range(STEPS):
        latents = torch.full((1, 2, 3, 2, 2), float(inputs[step]))
        cache.begin(LEVELS[step], ("positive",))
        known = cache.before_call(latents)
        if known is None:
            cache.after_call(torch.full_like(latents, float(outputs[step])))
            last = step
        else:
            wanted = inputs[step] + outputs[last] - inputs[last]
            assert torch.allclose(known, torch.full_like(latents, float(wanted)), atol=1e-5)
            found.append(step)
    assert found == expected
    assert 0 < len(found) < STEPS - 3


def test_drift_is_measured_in_float32_item_by_item_and_chunk_by_chunk():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(2, 5000, 3, generator=generator)
    now = before + torch.tensor([0.1, 0.3]).reshape(2, 1, 1) * torch.randn(2, 5000, 3, generator=generator)
    expected = (now - before).abs().double().mean((1, 2)) / before.abs().double().mean((1, 2))
    assert relative_change(now, before) == pytest.approx(expected.tolist(), rel=1e-5)
    half = relative_change(now.bfloat16(), before.bfloat16())
    assert half == pytest.approx(expected.tolist(), rel=0.02)


def test_a_change_from_nothing_is_infinite_and_numbers_that_are_none_are_never_skipped():
    assert relative_change(torch.ones(1, 2, 3), torch.zeros(1, 2, 3)) == [float("inf")]
    cache = begin(CacheConfig("teacache", 1e9))
    broken = [tokens(1.0), tokens(float("nan")), tokens(1.0), tokens(1.0)]
    found = []
    for step, modulated in enumerate(broken):
        cache.begin(LEVELS[step], ("positive",))
        known = cache.before_blocks(tokens(1.0), lambda modulated=modulated: modulated)
        found.append(known is not None)
        if known is None:
            cache.after_blocks(tokens(2.0))
    assert found == [False, False, False, True]


@pytest.mark.parametrize("name", METHODS)
def test_the_tables_numbers_hold_where_the_user_names_none(name):
    method, limits = METHODS[name], CacheConfig(name).limits
    assert (limits.threshold, limits.start, limits.max_skips) == (method.threshold, method.start, method.max_skips)
    named = CacheConfig(name, 0.5, 0.3, 0.8, 0).limits
    assert (named.threshold, named.start, named.end, named.max_skips) == (0.5, 0.3, 0.8, None)


@pytest.mark.parametrize("reached", [1, 2, 3])
@pytest.mark.parametrize("name", [*METHODS, "measure"])
def test_of_a_pass_that_failed_half_way_only_what_decided_it_is_held(name: str, reached: int) -> None:
    cache = Measurement() if name == "measure" else begin(CacheConfig(name))
    cache.begin(LEVELS[0], ("positive",))
    steps = cache.before_call, lambda x: cache.before_blocks(x, lambda: x), cache.after_first
    for step in steps[:reached]:
        assert step(tokens(1.0)) is None
    cache.forget()
    assert len(list(kept_by(cache))) <= (name in ("teacache", "first_block", "easycache"))


@pytest.mark.parametrize("name", METHODS)
def test_a_rule_that_ran_out_of_memory_is_asked_again_as_if_it_had_not(name: str) -> None:
    """At every copy to RAM and back: what is skipped, and what comes of it, is that of a run in which none failed."""

    class Failing:
        def __init__(self, at: int) -> None:
            self.at = at

        def __call__(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
            self.at -= 1
            if not self.at:
                raise torch.OutOfMemoryError
            return tensor.clone()

    def found(copy_fn: Failing) -> list[torch.Tensor]:
        curve = MagCurve((1.0, 0.01), (1.02,))
        config = CacheConfig(name, {"easycache": 0.1, "teacache": 0.1, "first_block": 0.06, "magcache": 0.1}[name])
        cache = replace(config, start=0.0, on_host=True, curve=curve).begin_run(LEVELS, (1, 1, 1), 64, copy_fn)
        made = []
        for step, value in enumerate(values):
            while len(made) == step:
                try:
                    cache.begin(LEVELS[step], ("positive",))
                    made.append(whole_pass(cache, tokens(value)))
                except torch.OutOfMemoryError:
                    cache.forget()
        made.append(torch.tensor(cache.report.skipped_passes))
        return made

    values = np.cumprod([1.0, *(1 + np.array(changes()) / 5)])
    counting = Failing(-1)
    expected = found(counting)
    assert 0 < expected[-1] < STEPS - 2
    for at in range(1, -counting.at):
        assert all(torch.equal(a, b) for a, b in zip(found(Failing(at)), expected, strict=True)), at


def whole_pass(cache, x: torch.Tensor) -> torch.Tensor:
    known = cache.before_call(x)
    if known is not None:
        return known
    known = cache.before_blocks(x, lambda: x)
    known = cache.after_first(2 * x) if known is None else known
    if known is None:
        known = 2 * x + x.square()
        cache.after_blocks(known)
    cache.after_call(known)
    return known

"""What all caches share: whose state is whose, when steps may be skipped at all, and what is reported."""

from __future__ import annotations

import pytest
import torch

from hyvideo_lib.caches import CacheConfig, StepCache
from hyvideo_lib.caches.run import Limits
from hyvideo_lib.sampling import make_sigmas

LEVELS = make_sigmas(8, 3.0).tolist()


class Said:
    """A rule that says what it sees: items of 1 may be skipped, others not."""

    def __init__(self, store):
        self.computed = 0

    def may_skip(self, sigma, seen):
        return bool((seen == 1).all())

    def was_computed(self, made):
        self.computed += 1


def make(threshold=1.0, start=0.0, end=1.0, max_skips=None, on_host=False) -> StepCache:
    return StepCache(Limits("said", threshold, start, end, max_skips, on_host), LEVELS, Said)


def one_pass(cache, step, words, adds=5.0, branches=("positive",), window=0, shape=(3, 2)):
    """Whether a pass was skipped; words: for every item whether it may be. What a computed one adds is `adds`."""
    cache.begin(LEVELS[step], branches, window)
    given = torch.arange(float(len(words))).reshape(-1, 1, 1).expand(-1, *shape).clone() + step
    known = cache.answer(torch.tensor(words).reshape(-1, 1, 1).float(), given)
    if known is None:
        cache.computed(given + adds)
        return None
    return (known - given)[:, 0, 0].tolist()


def test_a_skipped_pass_gets_what_the_last_computed_one_added():
    cache = make()
    assert one_pass(cache, 0, [1], adds=5.0) is None  # nothing is known yet
    assert one_pass(cache, 1, [1]) == [5.0]
    assert one_pass(cache, 2, [0], adds=6.0) is None
    assert one_pass(cache, 3, [1]) == [6.0]
    assert one_pass(cache, 4, [1]) == [6.0]


def test_branches_and_windows_have_states_of_their_own():
    cache = make()
    for step in (0, 1):
        assert one_pass(cache, step, [0], adds=1.0, branches=("negative",)) is None
        assert one_pass(cache, step, [0], adds=2.0, branches=("positive",)) is None
        assert one_pass(cache, step, [0], adds=3.0, branches=("positive",), window=1) is None
    assert one_pass(cache, 2, [1], branches=("negative",)) == [1.0]
    assert one_pass(cache, 2, [0], adds=4.0, branches=("positive",)) is None
    assert one_pass(cache, 2, [1], branches=("positive",), window=1) == [3.0]
    assert one_pass(cache, 3, [1], branches=("negative",)) == [1.0]
    assert one_pass(cache, 3, [1], branches=("positive",)) == [4.0]


def test_a_batch_of_both_branches_keeps_each_where_it_belongs():
    cache = make()
    adds = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    assert one_pass(cache, 0, [0, 0], adds=adds, branches=("negative", "positive")) is None
    assert one_pass(cache, 1, [1, 1], branches=("negative", "positive")) == [1.0, 2.0]
    assert one_pass(cache, 2, [1], branches=("positive",)) == [2.0]  # CFG ended
    assert one_pass(cache, 3, [1, 1], branches=("positive", "negative")) == [2.0, 1.0]


def test_one_item_that_wants_to_be_computed_computes_all():
    cache = make()
    assert one_pass(cache, 0, [1, 1, 1], adds=5.0) is None
    assert one_pass(cache, 1, [1, 0, 1], adds=6.0) is None
    assert one_pass(cache, 2, [1, 1, 1]) == [6.0, 6.0, 6.0]
    assert one_pass(cache, 3, [1, 0], adds=1.0, branches=("negative", "positive")) is None


def test_another_shape_starts_anew():
    cache = make()
    assert one_pass(cache, 0, [1]) is None
    assert one_pass(cache, 1, [1], shape=(3, 4)) is None
    assert one_pass(cache, 2, [1], shape=(3, 4)) == [5.0]
    assert one_pass(cache, 3, [1, 1]) is None


def test_a_rising_level_is_a_new_run():
    cache = make()
    for step in (0, 1):
        one_pass(cache, step, [1])
    assert cache.report.skipped_steps == 1
    assert one_pass(cache, 0, [1]) is None
    assert (cache.report.steps, cache.report.skipped_steps) == (1, 0)


@pytest.mark.parametrize(
    ("limits", "skipped"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),  # the first has nothing to go by, the last is always computed
        ({"threshold": 0.0}, []),
        ({"start": 0.5}, [4, 5, 6]),
        ({"end": 0.5}, [1, 2, 3]),
        ({"start": 0.3, "end": 0.6}, [2, 3, 4]),
        ({"max_skips": 1}, [1, 3, 5]),
        ({"max_skips": 2}, [1, 2, 4, 5]),
    ],
)
def test_limits_hold_whatever_the_rule_says(limits, skipped):
    cache = make(**limits)
    assert [step for step in range(8) if one_pass(cache, step, [1])] == skipped


def test_a_level_has_one_decision_and_its_latest_result_counts():
    """Heun calls the model at a level twice: ahead of the step, and at its beginning."""
    cache = make()
    assert one_pass(cache, 0, [0], adds=1.0) is None
    assert one_pass(cache, 1, [0], adds=2.0) is None
    assert one_pass(cache, 1, [1], adds=3.0) is None  # computed once, computed again
    assert one_pass(cache, 2, [1]) == [3.0]
    assert one_pass(cache, 2, [0]) == [3.0]  # skipped once, skipped again
    assert one_pass(cache, 3, [1]) == [3.0]
    assert cache.report.to_dict() | {"threshold": 1.0} == {
        "method": "said",
        "threshold": 1.0,
        "start": 0.0,
        "end": 1.0,
        "max_skips": None,
        "steps": 4,
        "skipped_steps": 2,
        "passes": 6,
        "skipped_passes": 3,
    }


def test_only_the_first_pass_of_a_level_moves_the_rule():
    rules = []
    cache = StepCache(
        Limits("said", 1.0, 0.0, 1.0, None, False), LEVELS, lambda store: rules.append(Said(store)) or rules[-1]
    )
    for step in (0, 0, 1, 1):
        one_pass(cache, step, [0])
    assert [rule.computed for rule in rules] == [2]


def test_the_report_says_steps_and_passes_where_they_differ():
    cache = make()
    for step in range(3):
        one_pass(cache, step, [1])
    assert cache.report.sentence() == "skipped 2 of 3 steps"
    cache = make()
    for step in range(3):
        one_pass(cache, step, [1], branches=("negative",))
        one_pass(cache, step, [step != 2], branches=("positive",))
    assert cache.report.sentence() == "skipped 1 of 3 steps (3 of 6 passes)"


@pytest.mark.parametrize("on_host", [False, True])
def test_what_is_kept_shares_no_memory_with_what_was_shown(on_host):
    cache = make(on_host=on_host)
    cache.begin(LEVELS[0], ("positive",))
    given = torch.ones(1, 3, 2)
    assert cache.answer(torch.zeros(1, 1, 1), given) is None
    given += 100  # the blocks work in place
    made = torch.full((1, 3, 2), 4.0)
    cache.computed(made)
    made += 100
    cache.begin(LEVELS[1], ("positive",))
    known = cache.answer(torch.ones(1, 1, 1), torch.ones(1, 3, 2))
    assert torch.equal(known, torch.full((1, 3, 2), 4.0))


def test_nothing_is_kept_of_a_pass_that_was_broken_off():
    cache = make()
    one_pass(cache, 0, [1])
    cache.begin(LEVELS[1], ("positive",))
    assert cache.answer(torch.zeros(1, 1, 1), torch.ones(1, 3, 2)) is None  # and then the user cancels
    assert one_pass(cache, 2, [1]) is None


def test_a_pass_that_is_tried_again_is_computed_and_counts_once_for_the_rule():
    rules = []
    cache = StepCache(
        Limits("said", 1.0, 0.0, 1.0, None, False), LEVELS, lambda store: rules.append(Said(store)) or rules[-1]
    )
    one_pass(cache, 0, [1])
    cache.begin(LEVELS[1], ("positive",))
    assert cache.answer(torch.zeros(1, 1, 1), torch.ones(1, 3, 2)) is None  # and then memory runs out
    assert one_pass(cache, 1, [1], adds=7.0) is None
    assert one_pass(cache, 2, [1]) == [7.0]
    assert [rule.computed for rule in rules] == [2]


def test_the_plain_cache_never_answers():
    cache = CacheConfig("easycache").begin_run(LEVELS, (1, 1, 1), 64)
    cache.begin(LEVELS[0], ("positive",))
    assert cache.before_blocks(torch.ones(1, 2, 2), lambda: torch.ones(1, 2, 2)) is None
    assert cache.after_first(torch.ones(1, 2, 2)) is None
    cache.after_blocks(torch.ones(1, 2, 2))
    assert cache.report.passes == 0

"""What all caches share: whose state is whose, when steps may be skipped at all, and what is reported."""

from __future__ import annotations

import weakref

import pytest
import torch

from hyvideo_lib.caches import CacheConfig, StepCache
from hyvideo_lib.caches.run import Limits
from hyvideo_lib.sampling import make_sigmas

LEVELS = make_sigmas(8, 3.0).tolist()


class Said:
    """A rule that says what it sees: items of 1 may be skipped, others not."""

    def __init__(self, place):
        self.computed = 0

    def may_skip(self, sigma, seen):
        return bool((seen == 1).all())

    def was_computed(self, made):
        self.computed += 1


def make(threshold=1.0, start=0.0, end=1.0, max_skips=None, on_host=False) -> StepCache:
    return StepCache(Limits("said", threshold, start, end, max_skips, on_host), LEVELS, Said)


BOTH = "negative", "positive"


def one_pass(cache, step, words, adds=5.0, passing=("positive",), branches=None, window=0, shape=(3, 2)):
    """Whether a pass was skipped; words: for every item whether it may be. What a computed one adds is `adds`."""
    cache.begin(LEVELS[step], passing, branches, window)
    given = torch.arange(float(len(words))).reshape(-1, 1, 1).expand(-1, *shape).clone() + step
    known = cache.answer(lambda: cache.deciding(torch.tensor(words).reshape(-1, 1, 1).float()), given)
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


def in_turn(cache, step, words, adds=(5.0, 5.0)):
    """Whether each of both branches was skipped, the positive one first."""
    return [
        one_pass(cache, step, [word], added, (branch,), BOTH)
        for branch, word, added in zip(reversed(BOTH), words, adds, strict=True)
    ]


def test_the_first_branch_of_a_level_decides_for_all():
    cache = make()
    assert in_turn(cache, 0, [0, 0], adds=(1.0, 2.0)) == [None, None]
    assert in_turn(cache, 1, [1, 0]) == [[1.0], [2.0]]
    assert in_turn(cache, 2, [0, 1], adds=(3.0, 4.0)) == [None, None]
    assert in_turn(cache, 3, [1, 1]) == [[3.0], [4.0]]


def test_a_batch_decides_as_its_branches_do_in_turn():
    words = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 0), (0, 0), (1, 1), (1, 1)]
    one, other = make(max_skips=1), make(max_skips=1)
    batches = [one_pass(one, step, [neg, pos], passing=BOTH) for step, (pos, neg) in enumerate(words)]
    turns = [in_turn(other, step, list(pair)) for step, pair in enumerate(words)]
    assert [batch is not None for batch in batches] == [pos is not None for pos, _ in turns]
    assert [batch is not None for batch in batches] == [neg is not None for _, neg in turns]
    assert one.report.skipped_steps == other.report.skipped_steps == 3


def test_a_level_where_a_branch_begins_is_computed_for_all():
    for passes in (in_turn, lambda cache, step, words: [one_pass(cache, step, words, passing=BOTH)]):
        cache = make()
        assert one_pass(cache, 0, [1]) is None
        assert one_pass(cache, 1, [1]) == [5.0]
        assert set(passes(cache, 2, [1, 1])) == {None}
        assert None not in passes(cache, 3, [1, 1])
        assert one_pass(cache, 4, [1]) == [5.0]


def test_windows_decide_each_for_itself():
    cache = make()
    for step in (0, 1):
        for window in (0, 1):
            assert one_pass(cache, step, [0], adds=2.0 + window, window=window) is None
    assert one_pass(cache, 2, [0], adds=4.0) is None
    assert one_pass(cache, 2, [1], window=1) == [3.0]
    assert one_pass(cache, 3, [1]) == [4.0]


def test_a_batch_of_both_branches_keeps_each_where_it_belongs():
    cache = make()
    adds = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    assert one_pass(cache, 0, [0, 0], adds=adds, passing=BOTH) is None
    assert one_pass(cache, 1, [1, 1], passing=("positive", "negative")) == [2.0, 1.0]


def test_nothing_is_kept_of_a_branch_that_does_not_come_again():
    cache = make()
    one_pass(cache, 0, [1, 1], passing=BOTH)
    negative, positive = (weakref.ref(cache._windows[0].kept[name]) for name in BOTH)
    assert one_pass(cache, 1, [1]) == [5.0]  # CFG ended
    assert negative() is None
    assert positive().untyped_storage().nbytes() == positive().nbytes


def test_one_item_that_wants_to_be_computed_computes_all():
    cache = make()
    assert one_pass(cache, 0, [1, 1, 1], adds=5.0) is None
    assert one_pass(cache, 1, [1, 0, 1], adds=6.0) is None
    assert one_pass(cache, 2, [1, 1, 1]) == [6.0, 6.0, 6.0]
    cache = make()
    assert one_pass(cache, 0, [1, 1, 1, 1], adds=1.0, passing=BOTH) is None
    assert one_pass(cache, 1, [1, 1, 0, 1], passing=BOTH) is None  # the first item of the positive prompt
    assert one_pass(cache, 2, [1, 0, 1, 1], passing=BOTH) == [5.0] * 4


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
        "on_host": False,
        "curve": None,
        "steps": 4,
        "skipped_steps": 2,
        "passes": 6,
        "skipped_passes": 3,
    }


def test_only_the_first_pass_of_a_level_moves_the_rule():
    rules = []
    cache = StepCache(
        Limits("said", 1.0, 0.0, 1.0, None, False), LEVELS, lambda place: rules.append(Said(place)) or rules[-1]
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
    for step in range(4):
        (one_pass if step < 2 else in_turn)(cache, step, [1] * (1 + step // 2))
    assert cache.report.sentence() == "skipped 2 of 4 steps (3 of 6 passes)"


@pytest.mark.parametrize("on_host", [False, True])
def test_what_is_kept_shares_no_memory_with_what_was_shown(on_host):
    cache = make(on_host=on_host)
    cache.begin(LEVELS[0], ("positive",))
    given = torch.ones(1, 3, 2)
    assert cache.answer(lambda: torch.zeros(1, 1, 1), given) is None
    given += 100  # the blocks work in place
    made = torch.full((1, 3, 2), 4.0)
    cache.computed(made)
    made += 100
    cache.begin(LEVELS[1], ("positive",))
    known = cache.answer(lambda: torch.ones(1, 1, 1), torch.ones(1, 3, 2))
    assert torch.equal(known, torch.full((1, 3, 2), 4.0))


def test_nothing_is_kept_of_a_pass_that_was_broken_off():
    cache = make()
    one_pass(cache, 0, [1])
    cache.begin(LEVELS[1], ("positive",))
    assert cache.answer(lambda: torch.zeros(1, 1, 1), torch.ones(1, 3, 2)) is None  # and then the user cancels
    assert one_pass(cache, 2, [1]) is None


def test_a_pass_that_is_tried_again_is_computed_and_counts_once_for_the_rule():
    rules = []
    cache = StepCache(
        Limits("said", 1.0, 0.0, 1.0, None, False), LEVELS, lambda place: rules.append(Said(place)) or rules[-1]
    )
    one_pass(cache, 0, [1])
    cache.begin(LEVELS[1], ("positive",))
    assert cache.answer(lambda: torch.zeros(1, 1, 1), torch.ones(1, 3, 2)) is None  # and then memory runs out
    cache.forget()
    assert one_pass(cache, 1, [1], adds=7.0) is None  # what was decided stays so
    assert one_pass(cache, 2, [1]) == [7.0]
    assert [rule.computed for rule in rules] == [2]


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_a_call_that_failed_leaves_the_report_as_it_was(failing):
    cache = make()
    for step in range(4):
        if step == failing:  # after the first of its branches
            one_pass(cache, step, [1], 5.0, ("positive",), BOTH)
            cache.forget()
        in_turn(cache, step, [1, 1])
        cache.end()
    cache.forget()  # what failed then had not begun
    assert (cache.report.steps, cache.report.skipped_steps, cache.report.passes) == (4, 3, 8)


def test_a_failed_second_call_at_a_level_takes_nothing_from_the_first():
    cache = make()
    one_pass(cache, 0, [0])
    cache.end()
    assert one_pass(cache, 1, [1]) == [5.0]
    cache.end()
    one_pass(cache, 1, [1])
    cache.forget()
    assert one_pass(cache, 1, [0]) == [5.0]
    assert (cache.report.passes, cache.report.skipped_passes) == (3, 2)


def test_the_plain_cache_never_answers():
    cache = CacheConfig("easycache").begin_run(LEVELS, (1, 1, 1), 64)
    cache.begin(LEVELS[0], ("positive",))
    assert cache.before_blocks(torch.ones(1, 2, 2), lambda: torch.ones(1, 2, 2)) is None
    assert cache.after_first(torch.ones(1, 2, 2)) is None
    cache.after_blocks(torch.ones(1, 2, 2))
    assert cache.report.passes == 0

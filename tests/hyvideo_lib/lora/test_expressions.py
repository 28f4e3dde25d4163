from __future__ import annotations

import random
import re

import pytest

from hyvideo_lib.lora.expressions import Budget, Expression, TooMuchWorkError

ATOMS = ("a", "b", "1", "_", r"\.", ".", r"\d", "[ab]", "[^a]", "^", "$")
REPEATS = ("*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "*?", "+?")


def random_expression(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random() if depth < 4 else 0

    def inner() -> str:
        return random_expression(rng, depth + 1)

    if kind < 0.4:
        return rng.choice(ATOMS)
    if kind < 0.6:
        return inner() + inner()
    if kind < 0.8:
        return f"({inner()}|{inner()})"
    return f"(?:{inner()}){rng.choice(REPEATS)}"


def test_a_name_fits_as_python_s_own_matcher_says() -> None:
    rng = random.Random(0)
    fitting = 0
    for _ in range(2000):
        text = random_expression(rng)
        expression = Expression(text)
        for _ in range(8):
            name = "".join(rng.choices("ab.1_", k=rng.randrange(8)))
            expected = re.match(rf"(.*\.)?({text})$", name) is not None
            fitting += expected
            assert expression.fits(name, Budget(10**9)) == expected, (text, name)
    assert 1000 < fitting < 15000


@pytest.mark.parametrize("text", ["(a+)+b", "(.*a){20}b", "(.*.*)*x", "(a|aa)*" * 20 + "b"])
def test_what_backtracking_never_ends_on_costs_little(text: str) -> None:
    budget = Budget(1_000_000)
    assert not Expression(text).fits("a" * 250 + "x.c", budget)
    assert budget.left > 500_000


def test_work_beyond_the_budget_is_refused() -> None:
    name = "".join(random.Random(0).choices("ab.", k=200_000))
    with pytest.raises(TooMuchWorkError, match="too long"):
        Expression("(.*a.{100})*x").fits(name, Budget(1_000_000))


@pytest.mark.parametrize(
    "text",
    ["(", "a**", "[a", "a{3,2}", "(?=a)b", r"(a)\1", "(?i)a", "(?i:a)", "(?>a)", r"\ba", "a*+", "(?#a)b", r"\x41"],
)
def test_what_is_no_expression_or_more_than_an_automaton_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"regular expression|not read here"):
        Expression(text)


@pytest.mark.parametrize("text", ["a" * 1001, "a{1000000}", "((((a{9}){9}){9}){9}){9}", "(" * 100 + "a" + ")" * 100])
def test_what_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"at most|too many|more than"):
        Expression(text)

"""Regular expressions that come from a file, matched in bounded time.

Python's `re` backtracks: `(a+)+b` takes longer than anybody waits, and nothing stops it. Here an expression becomes an
automaton (Thompson 1968, "Regular Expression Search Algorithm") whose sets of states are worked out as names ask for
them, so that a name costs a look-up a character. `re` still says what is an expression at all and which characters an
atom like `[a-z]` or `\\d` stands for. Left out is what no automaton can do (backreferences, looking around) and what no
module's name needs (flags, word boundaries, code points).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_LENGTH = 1000
"""Characters of an expression."""
MAX_STATES = 2000
"""Of an expression's automaton; a repetition like {50} has its content 50 times."""
MAX_DEPTH = 30
"""Groups within groups."""
NEW_STATE = 10
"""Costs of working out one state of a set, in look-ups."""

_REPEAT = re.compile(r"[*+?]|\{[0-9]*,[0-9]*\}|\{[0-9]+\}")
_GROUP = re.compile(r"\((?:\?:|\?P<[^>]*>|(?!\?))")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.S)
_ESCAPED = re.compile(r"\\[^0-9a-zA-Z]|\\[dDsSwWnrtfva]", re.S)
_EDGES = {"^": "start", "\\A": "start", "$": "end", "\\Z": "end"}
"""What matches a place instead of a character."""


class TooMuchWorkError(ValueError):
    """The budget is spent."""


@dataclass
class Budget:
    """Look-ups that all expressions of a file may take together."""

    left: int

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise TooMuchWorkError("its expressions take too long to match")


@dataclass
class State:
    """One state: reads a character (`atom`), passes at an edge of the name (`edge`), or only leads on (neither)."""

    atom: re.Pattern[str] | None = None
    edge: str = ""
    leads_to: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Reached:
    """A set of states, and the sets that characters lead to from here. last: whether a final character ends a match."""

    states: frozenset[int]
    following: dict[str, Reached] = field(default_factory=dict)
    last: dict[str, bool] = field(default_factory=dict)


class Expression:
    """An expression that a name fits if all of it matches, or all of it behind one of its dots.

    Raises ValueError for what is no expression, is too large, or has what is left out here.
    """

    def __init__(self, text: str) -> None:
        check_syntax(text)
        self._states = [State()]  # the first one is the end of a match
        self._start = _Builder(text, self._states).build()
        self._sets: dict[frozenset[int], Reached] = {}

    @property
    def size(self) -> int:
        return len(self._states)

    def fits(self, name: str, budget: Budget) -> bool:
        """Whether `(.*\\.)?(expression)$` matches a name, which has no line break. Raises TooMuchWorkError."""
        if not name:
            return 0 in self._closure([self._start], {"start", "end"})
        budget.spend(len(name))
        here = self._reached(self._closure([self._start], {"start"}), budget)
        for letter in name[:-1]:
            there = here.following.get(letter)
            if there is None:
                there = self._reached(self._step(here, letter, set()), budget)
                here.following[letter] = there
            here = there
        final = name[-1]
        if final not in here.last:
            ended = self._step(here, final, {"end"})
            budget.spend(NEW_STATE * (len(ended) + 1))
            here.last[final] = 0 in ended
        return here.last[final]

    def _reached(self, states: frozenset[int], budget: Budget) -> Reached:
        if states not in self._sets:
            budget.spend(NEW_STATE * (len(states) + 1))
            self._sets[states] = Reached(states)
        return self._sets[states]

    def _step(self, here: Reached, letter: str, edges: set[str]) -> frozenset[int]:
        """Where a character leads to; behind a dot a match may begin anew."""
        reached = [self._start] if letter == "." else []
        for index in here.states:
            state = self._states[index]
            if state.atom is not None and state.atom.fullmatch(letter):
                reached += state.leads_to
        return self._closure(reached, edges)

    def _closure(self, states: Iterable[int], edges: set[str]) -> frozenset[int]:
        """All states that these lead to without a character, at a place that is the edges named."""
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            index = waiting.pop()
            if index in found:
                continue
            found.add(index)
            state = self._states[index]
            if state.atom is None and (not state.edge or state.edge in edges):
                waiting += state.leads_to
        return frozenset(found)


def check_syntax(text: str) -> None:
    """Raises ValueError for what Python's `re` does not take."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an expression has {len(text)} characters; at most {MAX_LENGTH} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python will read otherwise
            re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text[:80]!r} is no regular expression ({error})") from error


class _Builder:
    """From the text of a valid expression to states. Each part is built twice or more where it is repeated."""

    def __init__(self, text: str, states: list[State]) -> None:
        self.text, self.states, self.place = text, states, 0

    def build(self) -> int:
        return self._put(self._choice(0), 0)

    def _refuse(self, what: str) -> ValueError:
        return ValueError(f"{self.text[:80]!r} has {what}, which is not read here")

    def _take(self, pattern: re.Pattern[str]) -> str:
        """What matches at this place, which is passed; empty if nothing does."""
        hit = pattern.match(self.text, self.place)
        if hit is None:
            return ""
        self.place = hit.end()
        return hit[0]

    # Reading: an expression as nested tuples, of which the first entry is the kind.

    def _choice(self, depth: int) -> tuple:
        if depth > MAX_DEPTH:
            raise self._refuse(f"more than {MAX_DEPTH} groups within each other")
        branches: list[list[tuple]] = [[]]
        while self.place < len(self.text) and self.text[self.place] != ")":
            if self.text[self.place] == "|":
                self.place += 1
                branches.append([])
            else:
                branches[-1].append(self._repeated(self._item(depth)))
        return ("any", [("all", branch) for branch in branches])

    def _item(self, depth: int) -> tuple:
        letter = self.text[self.place]
        edge = _EDGES.get(letter) or _EDGES.get(self.text[self.place : self.place + 2])
        if edge:
            self.place += 2 if letter == "\\" else 1
            return ("edge", edge)
        if letter == "(":
            if not self._take(_GROUP):
                raise self._refuse(f"{self.text[self.place : self.place + 4]!r}")
            inner = self._choice(depth + 1)
            self.place += 1  # its closing bracket, which is there in a valid expression
            return inner
        if letter in "[\\":
            atom = self._take(_CLASS if letter == "[" else _ESCAPED)
            if not atom:
                raise self._refuse(f"{self.text[self.place : self.place + 2]!r}")
            return ("atom", atom)
        self.place += 1
        return ("atom", "." if letter == "." else re.escape(letter))

    def _repeated(self, item: tuple) -> tuple:
        repeat = self._take(_REPEAT)
        if not repeat:
            return item
        follower = self.text[self.place : self.place + 1]
        if follower == "+":
            raise self._refuse("a possessive repetition")
        self.place += follower == "?"  # the shortest match is a match too
        low, high = {"*": ("0", ""), "+": ("1", ""), "?": ("0", "1")}.get(repeat) or _bounds(repeat)
        return ("repeat", item, int(low or 0), int(high) if high else None)

    # Building: `after` is the state that follows.

    def _new(self, state: State) -> int:
        if len(self.states) >= MAX_STATES:
            raise self._refuse("too many repetitions")
        self.states.append(state)
        return len(self.states) - 1

    def _put(self, part: tuple, after: int) -> int:
        kind = part[0]
        if kind == "atom":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._new(State(re.compile(part[1]), leads_to=[after]))
        if kind == "edge":
            return self._new(State(edge=part[1], leads_to=[after]))
        if kind == "all":
            for inner in reversed(part[1]):
                after = self._put(inner, after)
            return after
        if kind == "any":
            return self._new(State(leads_to=[self._put(branch, after) for branch in part[1]]))
        _, item, low, high = part
        return self._put_repeat(item, low, high, after)

    def _put_repeat(self, item: tuple, low: int, high: int | None, after: int) -> int:
        if max(low, high or 0) > MAX_STATES:
            raise self._refuse("too many repetitions")
        start = after
        if high is None:
            start = self._new(State())
            self.states[start].leads_to = [self._put(item, start), after]
        else:
            for _ in range(high - low):
                start = self._new(State(leads_to=[self._put(item, start), after]))
        for _ in range(low):
            start = self._put(item, start)
        return start


def _bounds(repeat: str) -> tuple[str, str]:
    low, comma, high = repeat[1:-1].partition(",")
    return (low, high) if comma else (low, low)

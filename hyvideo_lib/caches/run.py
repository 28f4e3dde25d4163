"""What all caches share: one object per run, which says of each pass whether it is computed and keeps what it made.

A step cache trades numbers for time: between two noise levels the model's answer changes little, so the change that a
pass made to its input is kept, and a later pass that may be skipped gets it added to its own input. How far things
have drifted since is told by a rule of each method. Every branch of the guidance, every window and every shape keeps
what is its own.

At one noise level there is one decision, and the positive prompt takes it for all branches, whether they come in a
batch or in turn: guidance multiplies the difference of two answers, which means nothing where one is fresh and the
other is old. It is known when the first of them comes, and no other branch has to be measured, or remembered for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..sampling.schedule import step_progress
from .drift import chunks
from .place import CopyFn, Place, copy_to


class Rule(Protocol):
    """How far the deciding branch has drifted from its last computed pass. Asked and told once a noise level.

    Both are repeated where memory runs out in them, and must leave no trace of a call that failed.
    """

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        """Whether this pass may be skipped; seen: what the method looks at, [B, ...], all items of the branch."""
        ...

    def was_computed(self, made: Tensor) -> None:
        """The pass that was asked about last was computed after all; made: its result [B, ...]."""
        ...


RuleFn = Callable[[Place], Rule]


@dataclass(frozen=True)
class Limits:
    """When passes may be skipped, whatever the drift.

    threshold: drift from which on passes are computed; 0 computes all. start, end: fractions of the run's steps.
    max_skips: passes of one branch that may be skipped in a row; None is without bound. on_host: keep tensors in RAM.
    curve: which one the method goes by: its fingerprint, after "built in" where it is; None for those without.
    """

    method: str
    threshold: float
    start: float
    end: float
    max_skips: int | None
    on_host: bool
    curve: str | None = None


@dataclass(frozen=True)
class CacheReport:
    """What a cache did in one run. A step counts as skipped if every pass at its noise level was."""

    method: str
    threshold: float
    start: float
    end: float
    max_skips: int | None
    on_host: bool
    curve: str | None
    steps: int
    skipped_steps: int
    passes: int
    skipped_passes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """ "skipped 7 of 20 steps"."""
        text = f"skipped {self.skipped_steps} of {self.steps} steps"
        if self.skipped_steps == self.skipped_passes and self.steps == self.passes:
            return text
        return f"{text} ({self.skipped_passes} of {self.passes} passes)"


@dataclass(eq=False)
class _Window:
    """What one window goes by. kept: of each branch, what its last computed pass added to its input, [B, ...].

    shape: of that. level: where it was last decided whether to skip. told: where the rule last heard of a pass.
    """

    shape: torch.Size
    rule: Rule
    kept: dict[str, Tensor] = field(default_factory=dict)
    level: float = math.inf
    told: float = math.inf
    is_skipped: bool = False
    in_a_row: int = 0


@dataclass(eq=False)
class _Level:
    """Passes at one noise level."""

    passes: int = 0
    skipped: int = 0


@dataclass(eq=False)
class StepCache:
    """The state of one run. Made for it, and never used for another; a noise level that rises starts anew.

    limits: see Limits. levels: the run's sigmas. rule_fn: makes the rule of one window. copy_fn: see Place.
    `begin` comes before every pass; of the others a method overrides those at which it looks. A batch holds the
    branches in equal parts, one behind the other, and is skipped only if every item of the deciding branch, the last of
    a level's first pass, may be: computing some items alone would not be faster, as the weights have to come for them
    too. Where a solver calls the model at a level again (Heun), the second call follows the first.
    """

    limits: Limits
    levels: Sequence[float]
    rule_fn: RuleFn
    copy_fn: CopyFn = copy_to
    place: Place = field(init=False)
    _windows: dict[int, _Window] = field(default_factory=dict, init=False)
    _window: int = field(default=0, init=False)
    _passing: tuple[str, ...] = field(default=("positive",), init=False)
    _branches: tuple[str, ...] = field(default=("positive",), init=False)
    _sigma: float = field(default=math.inf, init=False)
    _log: dict[float, _Level] = field(default_factory=dict, init=False)
    _call: _Level = field(default_factory=_Level, init=False)
    _inputs: list[Tensor] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.place = Place(self.limits.on_host, self.copy_fn)

    def begin(
        self, sigma: float, passing: tuple[str, ...], branches: tuple[str, ...] | None = None, window: int = 0
    ) -> None:
        """The next pass is at this noise level, of the branches that are passing; branches: all that come there.

        One that does not come again, as guidance is on for one stretch of a run, is dropped.
        """
        if sigma != self._sigma:
            self.end()
        if sigma > self._sigma:
            self._windows.clear()
            self._log.clear()
        self._sigma, self._passing, self._branches, self._window = sigma, passing, branches or passing, window
        self._inputs = []
        for state in self._windows.values():
            state.kept = {branch: kept for branch, kept in state.kept.items() if branch in self._branches}

    def end(self) -> None:
        """The call of the model, of one pass or one for each branch, has come to its end: its passes count."""
        level = self._log.setdefault(self._sigma, _Level())
        level.passes, level.skipped = level.passes + self._call.passes, level.skipped + self._call.skipped
        self._call = _Level()

    def release(self) -> None:
        """Give back the memory of what is kept: the run is over. The report stays."""
        self._windows.clear()
        self._inputs = []

    def forget(self) -> None:
        """A call of the model failed and will be made again: drop what it left half done.

        What was decided at its level stays so, and what rests on that: the same call ends as if it had not failed.
        """
        self._inputs, self._call = [], _Level()

    def keep_on_host(self) -> None:
        """From now on what is kept waits in RAM."""
        if self.place.on_host:
            return
        self.place.on_host = True
        for state in self._windows.values():
            for things in (state.kept, vars(state.rule)):
                things.update({key: self.place.store(it) for key, it in things.items() if isinstance(it, Tensor)})

    # Where a pass asks, in its order. An answer stands for the rest of the pass; None computes on.

    def before_call(self, latents: Tensor) -> Tensor | None:
        """Velocity of latents [B, C_out, T, H, W]."""
        return None

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        """Image tokens after all blocks, of those before them [B, L, D]; modulated_fn: the first block's input."""
        return None

    def after_first(self, img: Tensor) -> Tensor | None:
        """Image tokens after all blocks, of those after the first [B, L, D]."""
        return None

    def after_blocks(self, img: Tensor) -> None:
        """The blocks were computed and made these image tokens [B, L, D]."""

    def after_call(self, velocity: Tensor) -> None:
        """The transformer was computed and made this velocity [B, C_out, T, H, W]."""

    @property
    def report(self) -> CacheReport:
        self.end()
        done = [level for level in self._log.values() if level.passes]
        return CacheReport(
            **asdict(replace(self.limits, on_host=self.place.on_host)),
            steps=len(done),
            skipped_steps=sum(level.skipped == level.passes for level in done),
            passes=sum(level.passes for level in done),
            skipped_passes=sum(level.skipped for level in done),
        )

    # For the methods

    def deciding(self, batch: Tensor) -> Tensor:
        """The part of a batch that is the deciding branch's, in the first pass of a level."""
        return self._parts(batch)[-1]

    def is_decided(self, given: Tensor) -> bool:
        """Whether a pass with this input, [B, ...], follows what was decided at its level before."""
        return self._state(given).level == self._sigma

    def answer(self, seen_fn: Callable[[], Tensor], given: Tensor) -> Tensor | None:
        """given plus what its branches keep, if they may be skipped; None: compute.

        given: [B, ...]; seen_fn: what the method looks at of the deciding branch, asked for where nothing is decided.
        In the latter case `computed` is to follow, and what is kept is dropped meanwhile.
        """
        state = self._state(given)
        if state.level != self._sigma:
            self._decide(state, seen_fn())
        if state.is_skipped:
            self._call.skipped += 1
            self._call.passes += 1
            return self._answered(state, given)
        for branch in self._passing:
            state.kept.pop(branch, None)
        self._inputs = [self.place.store(part) for part in self._parts(given)]
        return None

    def computed(self, made: Tensor) -> None:
        """Keep what the pass added to its input; made: [B, ...]."""
        if not self._inputs:
            return
        state, inputs, parts = self._windows[self._window], self._inputs, self._parts(made.detach())
        self._inputs = []
        for branch, kept, part in zip(self._passing, inputs, parts, strict=True):
            for rows in chunks(kept.shape[1]):
                torch.sub(self._beside(part[:, rows]), kept[:, rows], out=kept[:, rows])
            state.kept[branch] = kept
        if state.told != self._sigma:  # a level's further passes say nothing of how things move from step to step
            state.rule.was_computed(parts[-1])
            state.told = self._sigma
        self._call.passes += 1

    def _beside(self, part: Tensor) -> Tensor:
        """A part of a result where things are kept."""
        return self.place.store(part) if self.place.on_host else part

    def _answered(self, state: _Window, given: Tensor) -> Tensor:
        result = given.clone()
        for branch, part in zip(self._passing, self._parts(result), strict=True):
            for rows in chunks(part.shape[1]):
                part[:, rows] += self.place.fetch(state.kept[branch][:, rows], given.device)
        return result

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.chunk(len(self._passing))

    def _state(self, given: Tensor) -> _Window:
        shape = self._parts(given)[0].shape
        state = self._windows.get(self._window)
        if state is None or state.shape != shape:
            state = self._windows[self._window] = _Window(shape, self.rule_fn(self.place))
        return state

    def _decide(self, state: _Window, seen: Tensor) -> None:
        may_skip = state.rule.may_skip(self._sigma, seen)  # asked also where nothing may be skipped: it follows the run
        most = self.limits.max_skips
        is_open = set(self._branches) <= state.kept.keys() and (most is None or state.in_a_row < most)
        state.is_skipped = self._is_in_range() and may_skip and is_open
        state.level = self._sigma
        state.in_a_row = state.in_a_row + 1 if state.is_skipped else 0

    def _is_in_range(self) -> bool:
        """Whether the method may act at this level. The last step is always computed: nothing corrects it."""
        is_last = self._sigma <= self.levels[-2]
        progress = step_progress(self._sigma, self.levels)
        return self.limits.threshold > 0 and not is_last and self.limits.start <= progress <= self.limits.end

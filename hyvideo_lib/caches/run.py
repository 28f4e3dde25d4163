"""What all caches share: one object per run, which says of each pass whether it is computed and keeps what it made.

A step cache trades numbers for time: between two noise levels the model's answer changes little, so the change that a
pass made to its input is kept, and a later pass that may be skipped gets it added to its own input. How far things
have drifted since is told by a rule of each method. Every branch of the guidance, every window and every shape has a
state of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..sampling.schedule import step_progress

StoreFn = Callable[[Tensor], Tensor]
"""Puts a tensor where the cache keeps things; what comes back shares no memory with it."""


class Rule(Protocol):
    """How far one branch has drifted from its last computed pass. Asked once a noise level."""

    def may_skip(self, sigma: float, seen: Tensor) -> bool:
        """Whether this pass may be skipped; seen: what the method looks at, [B, ...], all items of one branch."""
        ...

    def was_computed(self, made: Tensor) -> None:
        """The pass that was asked about last was computed after all; made: its result [B, ...]."""
        ...


@dataclass(frozen=True)
class Limits:
    """When passes may be skipped, whatever the drift.

    threshold: drift from which on passes are computed; 0 computes all. start, end: fractions of the run's steps.
    max_skips: passes of one branch that may be skipped in a row; None is without bound. on_host: keep tensors in RAM.
    """

    method: str
    threshold: float
    start: float
    end: float
    max_skips: int | None
    on_host: bool


@dataclass(frozen=True)
class CacheReport:
    """What a cache did in one run. A step counts as skipped if every pass at its noise level was."""

    method: str
    threshold: float
    start: float
    end: float
    max_skips: int | None
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


class Key(NamedTuple):
    """Whose state it is."""

    branch: str
    window: int


@dataclass(eq=False)
class _State:
    """One branch of one window. kept: what its last computed pass added to its input, [B, ...].

    level: where it was last decided whether to skip. told: where the rule last heard of a computed pass.
    """

    shape: torch.Size
    rule: Rule
    kept: Tensor | None = None
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

    limits: see Limits. levels: the run's sigmas. rule_fn: makes the rule of one branch.
    `begin` comes before every pass; of the others a method overrides those at which it looks. A batch holds the
    branches in equal parts, one behind the other, and is skipped only if every item of every branch may be: computing
    some items alone would not be faster, as the weights have to come for them too. At one noise level there is one
    decision: where a solver calls the model there again (Heun), the second pass follows the first.
    """

    limits: Limits
    levels: Sequence[float]
    rule_fn: Callable[[StoreFn], Rule]
    _states: dict[Key, _State] = field(default_factory=dict, init=False)
    _keys: tuple[Key, ...] = field(default=(Key("positive", 0),), init=False)
    _sigma: float = field(default=math.inf, init=False)
    _log: dict[float, _Level] = field(default_factory=dict, init=False)
    _input: Tensor | None = field(default=None, init=False)

    def begin(self, sigma: float, branches: tuple[str, ...], window: int = 0) -> None:
        """The next pass is at this noise level, of these branches."""
        if sigma > self._sigma:
            self._states.clear()
            self._log.clear()
        self._sigma, self._keys, self._input = sigma, tuple(Key(branch, window) for branch in branches), None

    def release(self) -> None:
        """Give back the memory of what is kept: the run is over. The report stays."""
        self._states.clear()
        self._input = None

    def forget(self) -> None:
        """The passes at this noise level will be run again: drop what they left half done, and all that is kept."""
        self._states.clear()
        self._log.pop(self._sigma, None)
        self._input = None

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
        limits, done = self.limits, self._log.values()
        return CacheReport(
            limits.method,
            limits.threshold,
            limits.start,
            limits.end,
            limits.max_skips,
            steps=len(done),
            skipped_steps=sum(level.skipped == level.passes for level in done),
            passes=sum(level.passes for level in done),
            skipped_passes=sum(level.skipped for level in done),
        )

    # For the methods

    def store(self, tensor: Tensor) -> Tensor:
        """A copy where the cache keeps things: in RAM, or on the tensor's device."""
        return tensor.detach().to("cpu" if self.limits.on_host else tensor.device, copy=True)

    def answer(self, seen: Tensor, given: Tensor) -> Tensor | None:
        """given plus what its branches keep, if all of them may be skipped by what is seen; None: compute.

        seen, given: [B, ...]. In the latter case `computed` is to follow, and what is kept is dropped meanwhile.
        """
        states = [self._state(key, part) for key, part in zip(self._keys, self._parts(given), strict=True)]
        is_skipped = self._decide(states, seen)
        level = self._log.setdefault(self._sigma, _Level())
        level.passes += 1
        level.skipped += is_skipped
        if is_skipped:
            kept = [state.kept.to(given.device) for state in states if state.kept is not None]
            return given + (kept[0] if len(kept) == 1 else torch.cat(kept))
        for state in states:
            state.kept = None
        self._input = self.store(given)
        return None

    def computed(self, made: Tensor) -> None:
        """Keep what the pass added to its input; made: [B, ...]."""
        if self._input is None:
            return
        added = made.to(self._input.device) - self._input
        self._input = None
        for key, kept, part in zip(self._keys, self._parts(added), self._parts(made), strict=True):
            state = self._states[key]
            state.kept = kept
            if state.told != self._sigma:  # a level's further passes say nothing of how things move from step to step
                state.told = self._sigma
                state.rule.was_computed(part)

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.chunk(len(self._keys))

    def _state(self, key: Key, part: Tensor) -> _State:
        state = self._states.get(key)
        if state is None or state.shape != part.shape:
            state = self._states[key] = _State(part.shape, self.rule_fn(self.store))
        return state

    def _decide(self, states: Sequence[_State], seen: Tensor) -> bool:
        if all(state.level == self._sigma for state in states):
            return all(state.is_skipped for state in states)
        # Every rule is asked, also where nothing may be skipped: each follows its own branch.
        may_skip = [
            state.rule.may_skip(self._sigma, part) for state, part in zip(states, self._parts(seen), strict=True)
        ]
        most = self.limits.max_skips
        is_open = [state.kept is not None and (most is None or state.in_a_row < most) for state in states]
        is_skipped = self._is_in_range() and all(may_skip) and all(is_open)
        for state in states:
            state.level, state.is_skipped = self._sigma, is_skipped
            state.in_a_row = state.in_a_row + 1 if is_skipped else 0
        return is_skipped

    def _is_in_range(self) -> bool:
        """Whether the method may act at this level. The last step is always computed: nothing corrects it."""
        is_last = self._sigma <= self.levels[-2]
        progress = step_progress(self._sigma, self.levels)
        return self.limits.threshold > 0 and not is_last and self.limits.start <= progress <= self.limits.end

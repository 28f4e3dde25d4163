"""What a part says: how many of what were wanted, how many were found, and the first few that went wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 5


@dataclass
class Figure:
    """One count. wanted: cases that should have ended well; found: those that did. wrong: what the others did.

    least: the share of them that must.
    """

    part: str
    what: str
    wanted: int = 0
    found: int = 0
    wrong: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)
    least: float = 1.0

    def add(self, problem: str | None, outcome: str = "") -> None:
        """Count a case. problem: what is wrong with how it ended, or None. outcome: a word for the table."""
        self.wanted += 1
        if outcome:
            self.outcomes[outcome] += 1
        if problem is None:
            self.found += 1
        else:
            self.wrong.append(problem)

    @property
    def is_met(self) -> bool:
        return self.wanted > 0 and self.found >= self.least * self.wanted

    def line(self) -> str:
        """The figure for people."""
        mark = "ok  " if self.is_met else "FAIL"
        extras = [f"{outcome} {count}" for outcome, count in self.outcomes.most_common()]
        extras += [f"{name} {value}" for name, value in self.notes.items()]
        text = f"{mark} {self.part}: {self.what}: wanted {self.wanted}, found {self.found}"
        if extras:
            text += f" ({', '.join(extras)})"
        return "\n".join([text, *(f"       {problem}" for problem in self.wrong[:SHOWN])])

    def row(self) -> dict[str, Any]:
        """The figure as one JSON object."""
        return {
            "part": self.part,
            "what": self.what,
            "wanted": self.wanted,
            "found": self.found,
            "outcomes": dict(self.outcomes),
            **self.notes,
            "wrong": self.wrong[:SHOWN],
        }


@dataclass(frozen=True)
class Scale:
    """How much of every part is run, and where. share: 1 is full size. minutes: for each fuzzer. only: part of the
    names of the fuzzers, the kinds of saves and the mutated modules that are wanted."""

    folder: Path
    share: float = 1.0
    seed: int = 0
    minutes: float = 1.0
    only: str = ""

    def count(self, full: int) -> int:
        """The share of a full count, at least one."""
        return max(1, round(full * self.share))

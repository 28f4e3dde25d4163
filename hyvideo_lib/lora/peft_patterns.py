"""PEFT's patterns: values for modules whose path fits a regular expression, the first that fits.

As PEFT 0.21 does it: a key fits a module's path if `(.*\\.)?(key)$` matches all of it, so `proj_out` speaks of every
module of that name, `^proj_out` only of one at the top. The order is the file's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .expressions import Budget, Expression

MAX_PATTERNS = 2000
"""More than any model has modules with a LoRA: trainers write one for each at the most."""
MAX_WORK = 20_000_000
"""Look-ups for the patterns of one file, some seconds. A pattern for each of 900 modules takes a third of them."""
STATE_WORK = 100
"""Costs of making one state of an expression, in look-ups."""


def make_budget() -> Budget:
    return Budget(MAX_WORK)


class Patterns:
    """Values by pattern. Raises ValueError for too many of them, and for one that cannot be read."""

    def __init__(self, values: Mapping[str, float] | None = None, budget: Budget | None = None) -> None:
        values = values or {}
        if len(values) > MAX_PATTERNS:
            raise ValueError(f"it has {len(values)} patterns; at most {MAX_PATTERNS} are read")
        self._budget = budget or make_budget()
        self._entries = [(_literal_end(key), self._expression(key), value) for key, value in values.items()]
        self._found: dict[str, float | None] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def value(self, module: str) -> float | None:
        """What the first pattern that fits a module's path says; None if none does. Raises ValueError."""
        if module not in self._found:
            self._found[module] = self._first(module)
        return self._found[module]

    def _expression(self, key: str) -> Expression:
        expression = Expression(key)
        self._budget.spend(STATE_WORK * expression.size)
        return expression

    def _first(self, module: str) -> float | None:
        self._budget.spend(len(self._entries))
        for end, expression, value in self._entries:
            if module.endswith(end) and expression.fits(module, self._budget):
                return value
        return None


def _literal_end(key: str) -> str:
    """Letters that every path ends with that fits a pattern: rules most modules out without matching."""
    hit = re.search(r"(?<![\w\\])[A-Za-z0-9_]+\$?$", key)
    return hit[0].removesuffix("$") if hit and "|" not in key else ""

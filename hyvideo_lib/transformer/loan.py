"""Weights that a layer has for one turn: copies in memory that something else fills before the next.

They may be written to, so what adapters add to many tokens goes into them where they lie. A layer is asked for its rows
in parts (groups of heads, then the MLP), and again; an account keeps what is in already from going in twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .ops import Adapter, Merging


class Loan:
    """One turn of one layer: which rows of its weight have which adapter's term in them, and by what it got there."""

    def __init__(self) -> None:
        self._added: dict[Adapter, list[tuple[int, int]]] = {}
        self._mergings: dict[Adapter, Merging] = {}

    def merging(self, adapter: Adapter, tokens: int, start: int, stop: int) -> Merging | None:
        """What the adapter says; of rows that have its term in part, what brought it there: it must not go beside."""
        if any(True for _ in self._spans(adapter, start, stop)):
            return self._mergings[adapter]
        return adapter.merging(tokens)

    def lacking(self, adapter: Adapter, start: int, stop: int) -> list[tuple[int, int]]:
        """(first, last) of the parts of these rows that lack the adapter's term, in order."""
        found = []
        for low, high in self._spans(adapter, start, stop):
            if start < low:
                found.append((start, low))
            start = high
        return [*found, (start, stop)] if start < stop else found

    def note(self, adapter: Adapter, merging: Merging, start: int, stop: int) -> None:
        """These rows of the weight have the adapter's term in them from now on."""
        self._mergings[adapter] = merging
        self._added.setdefault(adapter, []).append((start, stop))

    def _spans(self, adapter: Adapter, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Those that were noted and share rows with these, in order."""
        for low, high in sorted(self._added.get(adapter, ())):
            if low < stop and high > start:
                yield low, high


@contextmanager
def on_loan(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let the layers among them change their weights in this context, which are copies that nothing needs after it."""
    layers = [module for module in modules if hasattr(module, "loan")]
    for layer in layers:
        layer.loan = Loan()  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.loan = None  # type: ignore[assignment]

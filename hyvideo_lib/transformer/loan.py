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
    """One turn of one layer: how each adapter acts in it, and on which rows of the weight it has acted."""

    def __init__(self) -> None:
        self._ways: dict[Adapter, Merging | None] = {}
        self._added: dict[Adapter, list[tuple[int, int]]] = {}

    def merging(self, adapter: Adapter, tokens: int) -> Merging | None:
        """What the adapter said when first asked in this turn: a row that has its term must not get it beside too."""
        if adapter not in self._ways:
            self._ways[adapter] = adapter.merging(tokens)
        return self._ways[adapter]

    def lacking(self, adapter: Adapter, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(first, last) of the parts of these rows that lack the adapter's term, in order."""
        for low, high in sorted(self._added.get(adapter, ())):
            if start < low < stop:
                yield start, low
            start = max(start, min(high, stop))
        if start < stop:
            yield start, stop

    def note(self, adapter: Adapter, start: int, stop: int) -> None:
        """These rows of the weight have the adapter's term in them from now on."""
        self._added.setdefault(adapter, []).append((start, stop))


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

"""How much of its product a LoRA adds: alpha over rank, where the file tells alpha.

A tensor `....alpha` beside the matrices tells it for a module, else the places of `alpha_sources` in their order; the
first that speaks of the module holds, and another one that contradicts it is a refusal, as nobody can tell which is
right. Where nothing tells it, alpha is the rank and the scale 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UnsupportedFile
from .alpha_entries import AlphaSource
from .alpha_sources import AlphaSources

TENSORS = "alpha tensors"
NOWHERE = "stated nowhere, taken as the rank"
ROUNDING = 2.0**-7
"""How far two scales may be apart, as a part of the larger: alpha tensors are rounded to bfloat16."""


def scale_from_alpha(alpha: float | None, rank: int) -> float:
    """What the product is multiplied by; an alpha of 0 stands for the rank, as trainers have it.

    Raises ValueError for an alpha that is NaN or infinite.
    """
    if alpha is None or alpha == 0:
        return 1.0
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}")
    return alpha / rank


@dataclass(frozen=True)
class Scale:
    """What a module's product is multiplied by, and which place says so, in words."""

    value: float
    source: str


class Scales:
    """The scales of one file's modules."""

    def __init__(self, places: AlphaSources) -> None:
        self._file, self._sources, self._unused = places.file, places.sources, places.notes
        self._is_complete = True

    def of(self, module: str, rank: int, alpha: float | None = None) -> Scale:
        """The scale of a module by its path in the model. alpha: of the tensor beside its matrices, None without.

        Raises UnsupportedFile: two places contradict each other, or alpha is stated but not to be understood.
        """
        told: list[tuple[float, str, str]] = []  # scale, place, place and alpha
        if alpha is not None:
            told.append((self._from_tensor(module, rank, alpha), TENSORS, f"{TENSORS} (alpha {alpha:g})"))
        for source in self._sources:
            scale = None if source.problem else source.scale(module, rank)
            if scale is not None:
                told.append((scale, source.name, source.told(module)))
        if not told:
            self._check_unstated(module, rank)
            self._is_complete = False
            return Scale(1.0, NOWHERE)
        value, place, words = told[0]
        for other, _, their_words in told[1:]:
            if not math.isclose(value, other, rel_tol=ROUNDING):
                raise UnsupportedFile(
                    f"{self._file} states two scales for {module}: {value:g} by {words}, {other:g} by {their_words}. "
                    "Find out from where it comes which is right, and remove the other: move a configuration away that "
                    "is another file's, or save the file without the wrong entries of its header."
                )
        return Scale(value, place)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on places that did not count, for the report; complete once all modules have been asked for."""
        broken = [f"{source.name} is not taken: {source.problem}." for source in self._sources if source.problem]
        return (*broken, *(() if self._is_complete else self._unused))

    def _from_tensor(self, module: str, rank: int, alpha: float) -> float:
        try:
            return scale_from_alpha(alpha, rank)
        except ValueError as error:
            raise UnsupportedFile(f"{self._file}: {error} in {module}. The file is damaged; use another.") from error

    def _check_unstated(self, module: str, rank: int) -> None:
        """Raises UnsupportedFile if a place states alpha, but not so that it can be used: 1 would be a guess."""
        for source in self._sources:
            if source.problem:
                raise UnsupportedFile(
                    f"{self._file} has its alpha in {source.name}, but {source.problem}. Mend that or take it away; "
                    "without it alpha counts as the rank."
                )
            if source.alpha_of(module) is not None:
                self._refuse_rank(source, module, rank)

    def _refuse_rank(self, source: AlphaSource, module: str, rank: int) -> None:
        raise UnsupportedFile(
            f"{self._file} states alpha for rank {source.rank_of(module):g} in {source.name}, but the matrices of "
            f"{module} have rank {rank}, so its scale cannot be told. It was resized, or that is another file's. Save "
            "it with alpha tensors, or without what is stated there; alpha then counts as the rank."
        )

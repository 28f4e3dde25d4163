"""The modulation memo: what depends on the conditioning alone is computed once for each, and its weights never stay.

A quarter of a transformer's block weights turn the conditioning vector (noise level, guidance, pooled text) into a few
modulating vectors. In a run the same few conditionings come again and again, so those weights are brought to the device
once for all of them, one layer at a time, and the vectors are kept. That is exact: nothing is computed otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

KEPT = 64
"""Conditionings that are kept, the newest ones; about 2 MB each for the released model."""

Vectors = tuple[Tensor, ...]
VectorsFn = Callable[[Any, Tensor], Vectors]
VisitFn = Callable[[nn.Module], AbstractContextManager[None]]


@dataclass(frozen=True)
class _Entry:
    """Vectors, and what the LoRA terms in them were made from. The adapters themselves hold matrices on the device."""

    vectors: Vectors
    origins: tuple[Hashable, ...]


class ModulationMemo:
    """Modulating vectors by the conditioning they come from.

    A modulation has `vectors(vec)`, their `count`, and a `linear`, whose adapters count by their origins: other LoRAs,
    other vectors; the same LoRAs, attached anew, the same vectors.
    visit_fn brings its weights to the device while the caller computes with them.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, dict[int, _Entry]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of the vectors that are kept."""
        entries = (entry for table in self._known.values() for entry in table.values())
        return sum(vector.nbytes for entry in entries for vector in entry.vectors)

    def remember(self, visit_fn: VisitFn, *vecs: Tensor | None) -> VectorsFn:
        """What to ask for vectors in a pass with these conditioning vectors [B, D], and no others."""
        keys = {id(vec): _key(vec) for vec in vecs if vec is not None}

        def recall(modulation: Any, vec: Tensor) -> Vectors:
            key = keys[id(vec)]
            found = self._find(modulation, key)
            if found is None:
                with visit_fn(modulation):
                    found = self._keep(modulation, key, modulation.vectors(vec))
            return found

        return recall

    @torch.no_grad()
    def fill(
        self, visit_fn: VisitFn, modulations: Iterable[Any], vecs: Sequence[Tensor], check_fn: Callable[[], None]
    ) -> None:
        """Compute what the next passes will ask for, the weights of each modulation being brought once, if at all.

        vecs: of at most KEPT different conditionings, lest the first be forgotten for the last. check_fn: called
        between modulations; may raise.
        """
        wanted = {_key(vec): vec for vec in vecs}
        for key in wanted.keys() & self._known.keys():  # the last to be forgotten
            self._known[key] = self._known.pop(key)
        for modulation in modulations:
            check_fn()
            missing = [(key, vec) for key, vec in wanted.items() if self._find(modulation, key) is None]
            if missing:
                with visit_fn(modulation):
                    # Into one piece of memory: small results between large temporary weights would tear the heap.
                    first = _joined(modulation.vectors(missing[0][1][:1]))  # [1, 1, N]
                    pieces = [len(vec) for _, vec in missing]
                    store = first.new_empty(sum(pieces), *first.shape[1:]).split(pieces)
                    for row, (_, vec) in zip(store, missing, strict=True):
                        row.copy_(_joined(modulation.vectors(vec)))
                for row, (key, _) in zip(store, missing, strict=True):
                    self._keep(modulation, key, row.chunk(modulation.count, dim=-1))

    def clear(self) -> None:
        self._known.clear()

    def _find(self, modulation: Any, key: bytes) -> Vectors | None:
        entry = self._known.get(key, {}).get(id(modulation))
        return entry.vectors if entry and entry.origins == _origins(modulation) else None

    def _keep(self, modulation: Any, key: bytes, vectors: Vectors) -> Vectors:
        while len(self._known) >= KEPT and key not in self._known:
            del self._known[next(iter(self._known))]
        self._known.setdefault(key, {})[id(modulation)] = _Entry(vectors, _origins(modulation))
        return vectors


def _joined(vectors: Vectors) -> Tensor:
    return torch.cat(vectors, dim=-1)


def _key(vec: Tensor) -> bytes:
    """The numbers themselves, so that nothing that decides them can be forgotten."""
    return bytes(vec.detach().cpu().contiguous().view(torch.uint8).numpy())


def _origins(modulation: Any) -> tuple[Hashable, ...]:
    return tuple(adapter.origin for adapter in modulation.linear.adapters)

"""The report on a LoRA file: what of it acts on the model, how strongly, and what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint.lora_resolve import listed


@dataclass(frozen=True)
class Coverage:
    """What a LoRA file does to a transformer.

    family: prefix, module names and suffix of its tensors, in words. methods: LoRA, LoKr, DoRA, ... matched: tensors
    that act; unmatched: the names of those that do not. layers: how many are changed, of `all_layers`. ranks: every
    rank there is, rising. alphas: scale times rank of LoRA's products, likewise. double_blocks, single_blocks: indices
    of the blocks touched; others: layers outside of them. norm: Frobenius norm of all that is added at strength 1; None
    where that depends on the transformer's weights. alpha_sources: the places that state alpha, in words. notes:
    sentences on the file.
    """

    file: str
    family: str
    methods: tuple[str, ...]
    matched: int
    unmatched: tuple[str, ...]
    layers: int
    all_layers: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    double_blocks: tuple[int, ...]
    single_blocks: tuple[int, ...]
    others: tuple[str, ...]
    norm: float | None
    alpha_sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON object."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def describe(self) -> str:
        """One line for people."""
        ranks = f"rank {', '.join(map(str, self.ranks))}" if self.ranks else ""
        alphas = f"alpha {', '.join(f'{alpha:g}' for alpha in self.alphas)}" if self.alphas else ""
        alphas += f" ({'; '.join(self.alpha_sources)})" if alphas and self.alpha_sources else ""
        how = ", ".join(filter(None, (" and ".join(self.methods), ranks, alphas)))
        norm = "" if self.norm is None else f"; norm {self.norm:.4g}"
        return (
            f"{self.file}: {self.family}; {how}; {self.layers} of {self.all_layers} layers ({self.where()}){norm}; "
            f"{self.matched} tensors matched, {len(self.unmatched)} not"
            + "".join(f". {note.removesuffix('.')}" for note in self.notes)
        )

    def where(self) -> str:
        """The blocks that are touched, in words."""
        touched = [
            f"{kind} {spans(indices)}"
            for kind, indices in (("double", self.double_blocks), ("single", self.single_blocks))
            if indices
        ]
        return ", ".join(touched + ([f"{len(self.others)} other layers"] if self.others else []))

    def warning(self) -> str | None:
        """What to say of tensors that match nothing; None if there are none."""
        if not self.unmatched:
            return None
        total = self.matched + len(self.unmatched)
        return (
            f"{self.file}: {len(self.unmatched)} of {total} tensors belong to no layer of this transformer and are not "
            f"used: {listed(self.unmatched)}. The rest acts. A LoRA for another model, or for a text encoder, looks so."
        )


def spans(indices: Sequence[int]) -> str:
    """ "0-3, 7" of rising indices."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1][-1:] = [index] if len(parts[-1]) > 1 else [parts[-1][0], index]
        else:
            parts.append([index])
    return ", ".join("-".join(map(str, part)) for part in parts)

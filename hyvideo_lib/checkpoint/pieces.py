"""Tensors that are described now and made later, and what a conversion does to them: cast, join, split, reorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..quant import FP8_DTYPES, cast_fp8
from .keymap_tables import SQUEEZE
from .keymaps import apply_operation, undo_operation


@dataclass(frozen=True)
class Piece:
    """A tensor of the new file, or a step on the way to it.

    sources: the old file's tensors that it is made of; stored_as: their dtype. changes: what happens, in words.
    """

    name: str
    sources: tuple[str, ...]
    stored_as: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    changes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def named(self, name: str) -> Piece:
        is_same = self.sources == (name,)
        return replace(self, name=name, changes=self.changes if is_same else (*self.changes, "renamed"))


def piece_of(name: str, tensor: Tensor) -> Piece:
    """A tensor as it lies in a file."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Piece(name, (name,), dtype, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def cast(piece: Piece, dtype: torch.dtype) -> Piece:
    """The piece in another floating-point dtype; fp8 saturates."""
    if piece.dtype == dtype:
        return piece

    def make() -> Tensor:
        return cast_fp8(piece.make(), dtype) if dtype in FP8_DTYPES else piece.make().to(dtype)

    return replace(piece, dtype=dtype, make=make, changes=(*piece.changes, "cast"))


def apply(piece: Piece, operation: str) -> Piece:
    """Theirs as ours."""
    if not operation:
        return piece
    shape = piece.shape[:2] if operation == SQUEEZE else piece.shape
    return replace(
        piece,
        shape=shape,
        make=lambda: apply_operation(operation, piece.make()),
        changes=(*piece.changes, operation.replace("_", " ")),
    )


def undo(piece: Piece, operation: str) -> Piece:
    """Ours as theirs."""
    if not operation:
        return piece
    shape = (*piece.shape, 1, 1, 1) if operation == SQUEEZE else piece.shape
    change = "unsqueeze" if operation == SQUEEZE else operation.replace("_", " ")
    return replace(
        piece, shape=shape, make=lambda: undo_operation(operation, piece.make()), changes=(*piece.changes, change)
    )


def join(pieces: Sequence[Piece]) -> Piece:
    """The pieces, which have one dtype, below each other."""
    first = pieces[0]
    return replace(
        first,
        sources=tuple(source for piece in pieces for source in piece.sources),
        shape=(sum(piece.shape[0] for piece in pieces), *first.shape[1:]),
        make=lambda: torch.cat([piece.make() for piece in pieces]),
        changes=(*first.changes, "joined"),
    )


def split(piece: Piece, rows: Sequence[int]) -> list[Piece]:
    """The piece cut into so many rows each."""

    def cut(start: int, count: int) -> Piece:
        return replace(
            piece,
            shape=(count, *piece.shape[1:]),
            make=lambda: piece.make()[start : start + count],
            changes=(*piece.changes, "split"),
        )

    return [cut(sum(rows[:part]), count) for part, count in enumerate(rows)]

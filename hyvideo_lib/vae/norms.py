"""Group norms that can take their statistics from elsewhere.

A group norm in a tile sees the tile alone, which is most of what tiles change. Where all tiles are to take the same
statistics, these are noted in a first pass over a small copy of the whole video, and then used in place of their own.
They belong to the video, and are on the norms only while its tiles are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from . import lean


class TileNorm(nn.GroupNorm):
    """A GroupNorm over [B, C, T, H, W] that may be given its statistics; B is 1 then."""

    def __init__(self, num_groups: int, num_channels: int, eps: float) -> None:
        super().__init__(num_groups, num_channels, eps)
        self.given: lean.Statistics | None = None
        self.notes: dict[TileNorm, lean.Statistics] | None = None
        """Where to keep the statistics of what goes through, if they are wanted."""

    def statistics(self, frames: Tensor) -> lean.Statistics:
        """Those given, or of frames [T, C, H, W]."""
        if self.given is not None:
            return self.given
        found = lean.group_statistics(frames, self.num_groups, self.eps)
        if self.notes is not None:
            self.notes[self] = found
        return found

    def forward(self, x: Tensor) -> Tensor:
        if self.notes is not None:
            self.statistics(x[0].transpose(0, 1))
        if self.given is None:
            return super().forward(x)
        gain, shift = (vector.unsqueeze(1) for vector in lean.gain_and_shift(self, self.given))  # [C, 1, 1, 1]
        return (x.float() * gain + shift).to(x)


def note_statistics(module: nn.Module, first_pass: Callable[[], object]) -> dict[TileNorm, lean.Statistics]:
    """What the norms of a module see in the first pass."""
    norms = [norm for norm in module.modules() if isinstance(norm, TileNorm)]
    notes: dict[TileNorm, lean.Statistics] = {}
    try:
        for norm in norms:
            norm.notes = notes
        first_pass()
    finally:
        for norm in norms:
            norm.notes = None
    return notes


@contextmanager
def using(noted: dict[TileNorm, lean.Statistics]) -> Iterator[None]:
    """Within the block norms use what they noted. Nothing else of the module may run in it: see the module's text."""
    try:
        for norm, statistics in noted.items():
            norm.given = statistics
        yield
    finally:
        for norm in noted:
            norm.given = None

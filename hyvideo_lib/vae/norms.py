"""Group norms that can take their statistics from elsewhere.

A group norm in a tile sees the tile alone, which is most of what tiles change. Where all tiles are to take the same
statistics, these are noted in a first pass over a small copy of the whole video, and then used in place of their own.
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
        self._noted: lean.Statistics | None = None
        self._is_noting = False

    def statistics(self, frames: Tensor) -> lean.Statistics:
        """Those given, or of frames [T, C, H, W]."""
        if self.given is not None:
            return self.given
        found = lean.group_statistics(frames, self.num_groups, self.eps)
        if self._is_noting:
            self._noted = found
        return found

    def forward(self, x: Tensor) -> Tensor:
        if self._is_noting:
            self.statistics(x[0].transpose(0, 1))
        if self.given is None:
            return super().forward(x)
        gain, shift = (vector.unsqueeze(1) for vector in lean.gain_and_shift(self, self.given))  # [C, 1, 1, 1]
        return (x.float() * gain + shift).to(x)

    def note(self) -> None:
        """From now on keep the statistics of what goes through."""
        self._is_noting = True

    def use_noted(self) -> None:
        self._is_noting, self.given = False, self._noted

    def forget(self) -> None:
        self._is_noting, self.given, self._noted = False, None, None


@contextmanager
def shared_statistics(module: nn.Module, first_pass: Callable[[], object]) -> Iterator[None]:
    """Within the block the norms of a module use what they saw in the first pass."""
    norms = [norm for norm in module.modules() if isinstance(norm, TileNorm)]
    try:
        for norm in norms:
            norm.note()
        first_pass()
        for norm in norms:
            norm.use_noted()
        yield
    finally:
        for norm in norms:
            norm.forget()

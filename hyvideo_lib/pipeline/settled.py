"""What runs came down to when memory ran out: the next one with the same needs begins there and does not fail again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..caches import CacheConfig
    from ..transformer import LeanConfig
    from .sampler import SampleRun

MORE_ROOM = 1.02
"""Times the room of the run that came down; with more than that, the next one begins from the top again."""


@dataclass(frozen=True)
class _Found:
    """The form of a run. weights: bytes of them that were on the device. room: bytes that there were for it all."""

    lean: LeanConfig
    batched: bool
    cache: CacheConfig | None
    weights: int
    room: int | None


class SettledRuns:
    """Of one loaded transformer: asked before a run for the form to begin in, told after it what it came down to."""

    def __init__(self) -> None:
        self._found: dict[Hashable, _Found] = {}

    def begin(
        self, run: SampleRun, latent_shape: tuple[int, int, int], room: int | None
    ) -> tuple[SampleRun, int | None]:
        """The run as it should begin, and the most bytes of weights that should be on the device; None leaves it open.

        room: bytes for weights and work together; None is unknown.
        """
        found = self._found.get(_needs(run, latent_shape))
        if found is None or (room is not None and found.room is not None and room > MORE_ROOM * found.room):
            return run, None
        guidance = replace(run.guidance, batched=found.batched)
        return replace(run, lean=found.lean, guidance=guidance, cache=found.cache), found.weights

    def learn(
        self, asked: SampleRun, came_down: SampleRun, latent_shape: tuple[int, int, int], room: int | None
    ) -> None:
        """asked: the run before anything ran out. came_down: as it ended; nothing is learnt where nothing ran out."""
        if came_down.rungs and came_down.source is not None:
            weights = came_down.source.loaded_bytes
            form = _Found(came_down.lean, came_down.guidance.batched, came_down.cache, weights, room)
            self._found[_needs(asked, latent_shape)] = form


def _needs(run: SampleRun, latent_shape: tuple[int, int, int]) -> Hashable:
    """What decides how much memory sampling takes."""
    guidance = run.guidance.uses_cfg, run.guidance.batched
    return latent_shape, guidance, run.cache, len(run.loras), run.backend, run.compiling

"""The ladder: when memory runs out inside a step, take one step down and go on from the same latents.

A velocity depends on latents and noise level alone, so computing it again is all that going on takes: nothing that was
sampled is lost, and nothing is hidden. Every step down gives memory for a little time; the result stays the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..errors import OutOfMemory
from ..memory import Offloader, free_device_bytes
from ..memory.machine import gib
from ..memory.vram import SpillWatch, give_back
from ..sampling import VelocityFn
from ..shortage import is_out_of_memory, reason_of
from ..transformer import LeanConfig
from ..transformer.lean_config import lean_steps

if TYPE_CHECKING:
    from .sampler import SampleRun

logger = logging.getLogger("hyvideo")
Made = TypeVar("Made")
SWAP_STEPS = 3
"""Rungs from all blocks on the device to all of them in RAM."""


def swap_more(run: SampleRun) -> tuple[SampleRun, str] | None:
    """A third of the blocks more stay in RAM; None if all do, or if home is where they compute."""
    source = run.source
    if source is None or source.device is None or not source.is_apart:
        return None
    blocks, before = source.block_bytes, source.num_swapped
    source.unload(max(1, sum(blocks) // SWAP_STEPS))
    gained = source.num_swapped - before
    return (run, f"{gained} more blocks in RAM ({source.num_swapped} of {len(blocks)})") if gained > 0 else None


def cache_on_host(run: SampleRun) -> tuple[SampleRun, str] | None:
    """What the step cache keeps waits in RAM; None if that is next to nothing, or if RAM is where it is."""
    cache = run.cache
    is_apart = run.source.is_apart if run.source else run.host.device.type != "cpu"
    if cache is None or cache.on_host or not cache.keeps_tokens or not is_apart:
        return None
    return replace(run, cache=replace(cache, on_host=True)), "what the step cache keeps in RAM"


def go_leaner(run: SampleRun) -> tuple[SampleRun, str] | None:
    """The next of the lean steps."""
    steps = lean_steps(run.config.num_heads)
    below = steps[steps.index(run.lean) + 1 :] if run.lean in steps else steps[-1:]
    if not below or below[0] == run.lean:
        return None
    return replace(run, lean=below[0]), describe_lean(below[0])


def guide_in_turn(run: SampleRun) -> tuple[SampleRun, str] | None:
    """Both passes of classifier-free guidance one after the other."""
    if not (run.guidance.uses_cfg and run.guidance.batched):
        return None
    return replace(run, guidance=replace(run.guidance, batched=False)), "both passes of CFG in turn"


RUNGS: tuple[Callable[[SampleRun], tuple[SampleRun, str] | None], ...] = (
    swap_more,
    cache_on_host,
    go_leaner,
    guide_in_turn,
)
"""Taken in turn, as long as there is one that still gives memory: what costs least first."""


class Ladder:
    """One run's way down. run: as it is now. taken: what was done so far, in words."""

    def __init__(self, run: SampleRun) -> None:
        self.run = run
        self._next = 0
        self._spill: SpillWatch | None = None
        self._has_spilled = False

    def velocity_fn(self, make: Callable[[SampleRun], VelocityFn], before_retry: Callable[[], None]) -> VelocityFn:
        """The velocity that `make` gives for a run, which is made anew for every run further down.

        before_retry: called when a call failed, to forget what it left half done.
        """
        current = make(self.run)
        self._spill = self._spill or SpillWatch(self.run.host.device)

        def guarded(latents: Tensor, sigma: float) -> Tensor:
            nonlocal current
            while True:
                made, reason = attempt(current, latents, sigma)
                if made is not None:
                    if self._relieve(sigma):
                        current = make(self.run)
                    return made
                before_retry()
                self._descend(f"at noise level {sigma:.3f} ({reason})")
                current = make(self.run)

        return guarded

    def _relieve(self, sigma: float) -> bool:
        """Whether a step down was taken because the driver put something into RAM, which is slow and no error.

        What PyTorch kept without using it may have been all of it, so that is given back first.
        """
        assert self._spill is not None
        over = self._spill.num_bytes
        if not over:
            return False
        give_back(self.run.host.device)
        if not self._has_spilled:
            self._has_spilled = True
            return False
        where, taken = self._step_down(f"at noise level {sigma:.3f} (the driver put {gib(over)} into RAM)")
        if not taken:
            logger.warning("memory ran out %s, and steps take long. %s", where, self.advice())
            self._spill.is_on = False  # said once
        return taken

    def _descend(self, where: str) -> None:
        """Take the next rung that gives memory. Raises OutOfMemory where none is left."""
        give_back(self.run.host.device)
        where, taken = self._step_down(where)
        if not taken:
            raise OutOfMemory(f"Memory ran out while sampling {where}. {self.advice()}")

    def _step_down(self, where: str) -> tuple[str, bool]:
        """Take the next rung that gives memory. Whether there was one; and where, with what failed meanwhile."""
        for _ in RUNGS:
            rung = RUNGS[self._next]
            self._next = (self._next + 1) % len(RUNGS)
            found, reason = attempt(lambda step: (step(self.run),), rung)
            if found is None:  # others may give what this one needed itself
                where += f", and again at a step down ({reason})"
            elif found[0] is not None:
                self.run, words = found[0]
                self.run.rungs.append(words)
                give_back(self.run.host.device)
                logger.warning("memory ran out %s: going on from the same step with %s", where, words)
                return where, True
        return where, False

    def advice(self) -> str:
        """What can be done, with numbers."""
        run = self.run
        free = free_device_bytes(run.host.device)
        facts = [f"{gib(run.source.loaded_bytes)} of weights are on the device"] if run.source else []
        facts += [f"{gib(free)} are free"] if free is not None else []
        if run.rungs:
            facts.append(f"tried already: {'; '.join(run.rungs)}")
        numbers = f" ({'; '.join(facts)})" if facts else ""
        narrower = "keep the weights in 8 bits (storage dtype float8_e4m3fn), " if _is_wide(run) else ""
        narrower += "do without the step cache or take easycache, " if run.cache and run.cache.keeps_tokens else ""
        return (
            f"Nothing is left to give up here{numbers}. Make the video smaller or shorter (width, height, frames), "
            f"{narrower}or close other programs; `hyvideo plan`, or in ComfyUI the node Plan, says what fits."
        )


def _is_wide(run: SampleRun) -> bool:
    """Whether most of the transformer's weights rest in 16 bits or more."""
    weights = list(run.model.parameters())
    wide = sum(weight.nbytes for weight in weights if weight.element_size() > 1)
    return 2 * wide > sum(weight.nbytes for weight in weights)


def load_weights(run: SampleRun, source: Offloader, budget: int | None) -> None:
    """Bring the weights to the run's device, within `budget` bytes (None: all); fewer blocks of them if that fails.

    Raises OutOfMemory if what must be there does not fit.
    """
    device = run.host.device
    while True:
        moved, reason = attempt(source.load, device, budget)
        if moved is not None:
            return
        budget = source.num_bytes if budget is None else budget
        if budget <= 0:
            raise OutOfMemory(
                f"Memory ran out while the transformer was brought to the device ({reason}), though all its blocks "
                f"were left in RAM. {Ladder(run).advice()}"
            )
        give_back(device)
        budget = max(0, budget - max(1, sum(source.block_bytes) // SWAP_STEPS))
        run.rungs.append("fewer blocks on the device from the beginning")
        logger.warning("memory ran out while weights were loaded (%s): trying with fewer blocks", reason)


def attempt(call: Callable[..., Made], *args: Any) -> tuple[Made | None, str]:
    """(what the call made, ""), or (None, why) if memory ran out. What the failed call held is let go."""
    try:
        return call(*args), ""
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None, reason_of(error)


def describe_lean(lean: LeanConfig) -> str:
    """ "heads in 4 groups"."""
    chunks = "" if lean.chunk_tokens is None else f" and {lean.chunk_tokens} tokens at a time"
    return f"heads in {lean.head_groups} groups{chunks}"

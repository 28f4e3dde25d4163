"""What the steps of a run cost: how often the transformer's blocks are gone through in each, and what that takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

from ..memory.plan import StagePlan, step_cost
from ..memory.simulate import StreamCost
from ..sampling import find_solver, make_sigmas, truncate_sigmas
from ..sampling.schedule import step_progress
from .request import GenerateRequest


@dataclass(frozen=True)
class StepCost:
    """Of one step. moved: bytes that come to the device. stream: simulated cost on a card of known speed, computed and
    not measured; None also for products in 8 bits, at which the speed is not known."""

    flops: float
    moved: int
    stream: StreamCost | None = None


@dataclass(frozen=True)
class RunCost:
    """steps: of a run, in their order. is_cached: whether a cache may skip some of them, which then take next to
    nothing."""

    steps: tuple[StepCost, ...]
    is_cached: bool = False

    @property
    def flops(self) -> list[float]:
        return [step.flops for step in self.steps]

    @property
    def moved(self) -> list[int]:
        return [step.moved for step in self.steps]

    @property
    def streams(self) -> list[StreamCost]:
        """Of all steps; empty where the speed is not known."""
        return [step.stream for step in self.steps if step.stream]

    @property
    def seconds(self) -> list[float]:
        return [stream.seconds for stream in self.streams]

    @property
    def quickest(self) -> StreamCost | None:
        return min(self.streams, key=lambda stream: stream.seconds, default=None)

    def to_dict(self, link: float) -> dict[str, Any]:
        """Plain values, for JSON: of a step on average where nothing else is said. link: bytes a second."""
        return {
            "kind": "computed",
            "flops": fmean(self.flops),
            "flops_at_most": max(self.flops),
            "seconds_at_least": self.quickest.seconds if self.quickest else None,
            "seconds": fmean(self.seconds) if self.streams else None,
            "stalled_seconds": self.quickest.stalled if self.quickest else None,
            "moved_bytes": round(fmean(self.moved)),
            "moved_bytes_at_most": max(self.moved),
            "copy_seconds": fmean(self.moved) / link,
        }


def passes_of(request: GenerateRequest, in_turn: bool) -> Iterator[list[int]]:
    """Of every step, the batches that go through the blocks: 1 for a prompt, 2 for both together."""
    levels = truncate_sigmas(make_sigmas(request.steps, request.shift), request.strength).tolist()
    guidance, calls = request.guidance, find_solver(request.solver).calls_per_step
    both = [1, 1] if in_turn else [2]
    each = [both if guidance.is_guided(step_progress(sigma, levels)) else [1] for sigma in levels[:-1]]
    for step in range(len(each)):  # a later call of a step is made where the next begins, and there is none at the end
        yield [batch for call in each[step : step + calls] for batch in call]


def cost_steps(
    request: GenerateRequest, stage: StagePlan, flops: float, speed: float | None, prefetch: int, link: float
) -> RunCost:
    """stage: of sampling. flops: of a block for one prompt. speed: FLOP/s; None is unknown. link: bytes a second."""
    blocks = stage.weights.blocks
    moved = sum(blocks[i] for i in stage.swapped)
    streams = {}
    if speed is not None:
        for batch in (1, 2):
            seconds = [batch * flops / speed] * len(blocks)
            streams[batch] = step_cost(stage.weights, stage.swapped, seconds, prefetch, link)

    def cost(batches: tuple[int, ...]) -> StepCost:
        parts = [streams[batch] for batch in batches] if streams else []
        stream = StreamCost(*(sum(column) for column in zip(*map(astuple, parts), strict=True))) if parts else None
        return StepCost(sum(batches) * len(blocks) * flops, len(batches) * moved, stream)

    kinds = [tuple(batches) for batches in passes_of(request, stage.way.calls == 2)]
    costs = {kind: cost(kind) for kind in set(kinds)}
    return RunCost(tuple(costs[kind] for kind in kinds), request.cache is not None)

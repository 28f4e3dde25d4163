"""One step with all blocks in RAM: streamed, copied each in its turn, and exchanged, against all of them on the card.

The exchange is what peers do that keep one place for each block: it goes to the card, and back after it computed. The
sides take turns, as benchmarks.measure lets them, so that what changes on the card in minutes touches all of them.
Bringing the weights for a turn is not timed, nor is what is done once in a run of many steps. Blocks that come in their
turn, and those that are exchanged, are copied from and to ordinary memory, as peers do; streamed ones from pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from benchmarks.cases import Case
from benchmarks.gpu import card
from benchmarks.gpu.clips import Clip, clips, cropped
from benchmarks.gpu.kernels import shared_kernel, warm_up
from benchmarks.gpu.models import random_transformer
from benchmarks.gpu.step import STORAGES, Inputs, case_of, config_of
from benchmarks.gpu.table import Table, attempted
from benchmarks.measure import seconds_of
from benchmarks.rows import OURS, Measurement, Options, Row, measured_row, ratio_row
from benchmarks.transformer import GUIDANCE
from hyvideo_lib.memory import BlockSwap, Offloader, Traffic
from hyvideo_lib.pipeline import offload_transformer
from hyvideo_lib.transformer import HunyuanVideoTransformer
from hyvideo_lib.transformer.model import AllResident, BlockSource

ALL = 10**6
SWAPS = {"resident": BlockSwap(), OURS: BlockSwap(ALL, ALL, 1), "in turn, pageable": BlockSwap(ALL, ALL, 0)}
EXCHANGE = "exchange, pageable"
NUM_SIDES = len(SWAPS) + 1
ORDER = (2, 3, 0)
"""Of the sizes: 848 x 480, where copies have the least computing to hide behind of those that the aim is for; then
512 x 320, with less; then the largest. A turn of all sides takes its time, and 960 x 544 lies between them."""
Place = Callable[[Inputs], AbstractContextManager[tuple[BlockSource, int]]]
"""In the context all is ready for a pass over these inputs: where the blocks come from, and how many stay in RAM."""


@dataclass(frozen=True)
class Turn:
    """One step of one side. peak: bytes at most; None where nobody counts. held: bytes before. swapped: blocks in RAM.
    traffic: what came over meanwhile, and how long computing waited; None where nobody counts."""

    seconds: float
    peak: int | None
    held: int
    swapped: int
    traffic: Traffic | None


class Exchange(AllResident):
    """Every block to the card and back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def through(self, blocks: Iterable[nn.Module]) -> Generator[nn.Module, None, None]:
        for block in blocks:
            block.to(self._device)
            yield block
            block.to("cpu")


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    table = Table("gpu swap", options)
    for storage in STORAGES:
        yield from table.rows_of(cases_of(table.benchmark, storage, options))
        card.empty(options.device)


def cases_of(benchmark: str, storage: str, options: Options) -> Iterator[Case]:
    """All sizes with weights in one storage dtype, which are made for the first that is measured."""
    config = config_of(options)

    @cache
    def made() -> tuple[HunyuanVideoTransformer, dict[str, Place]]:
        model = random_transformer(config, STORAGES[storage], options.device)
        for module in model.children():
            module.to("cpu")
        return model, places(model, options.device)

    def rows(clip: Clip, case: str) -> Iterator[Row]:
        model, sides = made()
        yield from in_turns(benchmark, case, model, sides, clip, options)

    sizes = clips(options.is_quick)
    for clip in [sizes[place] for place in ORDER if place < len(sizes)]:
        case = case_of(clip, storage)
        yield Case(case, partial(rows, clip, case), OURS, NUM_SIDES * options.repeats * clip.operations(config))


def places(model: HunyuanVideoTransformer, device: torch.device) -> dict[str, Place]:
    """Each side's way to place the weights; a side keeps what it pinned from turn to turn."""

    def offloaded(swap: BlockSwap) -> Place:
        source = offload_transformer(model, swap)

        @contextmanager
        def place(inputs: Inputs) -> Iterator[tuple[BlockSource, int]]:
            try:
                source.load(device)
                model(**cropped(inputs), guidance=GUIDANCE, source=source)  # remembers the modulating vectors
                yield source, source.num_swapped
            finally:
                source.go_home()

        return place

    @contextmanager
    def exchanged(inputs: Inputs) -> Iterator[tuple[BlockSource, int]]:
        blocks = set(model.blocks)
        rest = [module for module in model.children() if not blocks & set(module.modules())]
        try:
            for module in rest:
                module.to(device)
            yield Exchange(device), len(blocks)
        finally:
            model.to("cpu")

    return {**{name: offloaded(swap) for name, swap in SWAPS.items()}, EXCHANGE: exchanged}


def in_turns(
    benchmark: str, case: str, model: HunyuanVideoTransformer, sides: dict[str, Place], clip: Clip, options: Options
) -> Iterator[Row]:
    """A row per side and the ratios to ours, round by round. A side that fails says why and takes no more turns."""
    config = model.config
    inputs = clip.inputs(config, model.compute_dtype, options.device)
    warm_up(options.device, model.compute_dtype, config.num_heads, clip.tokens, config.head_dim)
    kernel = shared_kernel(options.device, model.compute_dtype, config.head_dim)
    rounds: dict[str, list[Turn]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side in list(rounds):

            def rows(side: str = side) -> Iterator[Row]:
                rounds[side].append(one_turn(model, sides[side], inputs, options.device))
                return iter(())

            failed = list(attempted(rows, benchmark, case, side, options.device))
            if failed:
                del rounds[side]
            card.empty(options.device)
            yield from failed
    results = {side: measurement_of(turns) for side, turns in rounds.items()}
    for side, result in results.items():
        yield {**measured_row(benchmark, case, side, result), "attention": kernel}
    for side in results:
        if side != OURS and OURS in results:
            yield ratio_row(benchmark, case, side, results[OURS], results[side])


def one_turn(model: HunyuanVideoTransformer, place: Place, inputs: Inputs, device: torch.device) -> Turn:
    with place(inputs) as (source, num_swapped):
        before = source.traffic if isinstance(source, Offloader) else None
        held = card.reset_peak(device)
        seconds = seconds_of(partial(model, **inputs, guidance=GUIDANCE, source=source), device)
        traffic = source.traffic - before if isinstance(source, Offloader) and before is not None else None
        return Turn(seconds, card.peak_of(device), held, num_swapped, traffic)


def measurement_of(turns: list[Turn]) -> Measurement:
    last = turns[-1]
    result = card.measurement([turn.seconds for turn in turns], last.peak, last.held)
    more: dict[str, Any] = {"swapped": last.swapped}
    if last.traffic is not None:
        more |= {"moved_bytes": last.traffic.moved_bytes, "stalled_seconds": last.traffic.stalled_seconds}
    return Measurement(result.seconds, result.working_memory, {**result.more, **more})

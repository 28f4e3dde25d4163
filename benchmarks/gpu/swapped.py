"""One step with all blocks in RAM: streamed, copied each in its turn, and exchanged, against all of them on the card.

The exchange is what peers do that keep one place for each block: it goes to the card, and back after it computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from benchmarks.gpu import card
from benchmarks.gpu.clips import clips
from benchmarks.gpu.models import TINY_TRANSFORMER, TRANSFORMER, random_transformer
from benchmarks.gpu.step import STORAGES, case_of
from benchmarks.rows import OURS, Measurement, Options, Row, measured_row, ratio_row, skipped_row
from benchmarks.transformer import GUIDANCE
from hyvideo_lib.memory import BlockSwap
from hyvideo_lib.pipeline import offload_transformer
from hyvideo_lib.transformer import HunyuanVideoTransformer
from hyvideo_lib.transformer.model import AllResident

ALL = 10**6
SWAPS = {OURS: BlockSwap(ALL, ALL, 1), "in turn": BlockSwap(ALL, ALL, 0)}


class Exchange(AllResident):
    """Every block to the card and back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def through(self, blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
        for block in blocks:
            block.to(self._device)
            yield block
            block.to("cpu")


def run(options: Options) -> Iterator[Row]:
    config = TINY_TRANSFORMER if options.is_quick else TRANSFORMER
    for storage, dtype in STORAGES.items():
        if any(options.wants(case_of(clip, storage)) for clip in clips(options.is_quick)):
            model = random_transformer(config, dtype, options.device)
            for module in model.children():
                module.to("cpu")
            yield from of_storage(model, storage, options)
            del model
            card.empty(options.device)


@torch.no_grad()
def of_storage(model: HunyuanVideoTransformer, storage: str, options: Options) -> Iterator[Row]:
    for clip in clips(options.is_quick):
        case = case_of(clip, storage)
        if not options.wants(case):
            continue
        inputs = clip.inputs(model.config, model.compute_dtype, options.device)
        results: dict[str, Measurement] = {}
        for side, measure in sides(model, options).items():
            try:
                results[side] = measure(inputs)
            except torch.OutOfMemoryError:
                yield skipped_row("gpu swap", case, side, card.OUT_OF_MEMORY)
                continue
            finally:
                card.empty(options.device)
            yield measured_row("gpu swap", case, side, results[side])
        for peer in results.keys() - {OURS}:
            if OURS in results:
                yield ratio_row("gpu swap", case, peer, results[OURS], results[peer])


Measure = Callable[[dict[str, torch.Tensor]], Measurement]


def sides(model: HunyuanVideoTransformer, options: Options) -> dict[str, Measure]:
    device = options.device

    def offloaded(swap: BlockSwap) -> Measure:
        def measure(inputs: dict[str, torch.Tensor]) -> Measurement:
            source = offload_transformer(model, swap)
            try:
                source.load(device)
                result = card.measure(
                    lambda: model(**inputs, guidance=GUIDANCE, source=source), device, options.repeats
                )
                return Measurement(
                    result.seconds, result.working_memory, {**result.more, "swapped": source.num_swapped}
                )
            finally:
                source.go_home()

        return measure

    def exchanged(inputs: dict[str, torch.Tensor]) -> Measurement:
        blocks = set(model.blocks)
        rest = [module for module in model.children() if not blocks & set(module.modules())]
        try:
            for module in rest:
                module.to(device)
            source = Exchange(device)
            return card.measure(lambda: model(**inputs, guidance=GUIDANCE, source=source), device, options.repeats)
        finally:
            model.to("cpu")

    return {
        "resident": offloaded(BlockSwap()),
        **{name: offloaded(swap) for name, swap in SWAPS.items()},
        "exchange": exchanged,
    }

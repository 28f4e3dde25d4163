"""Which sizes run on a card of so much memory, in 8 bit: the planner's own choices, one step, and its peak."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu import card
from benchmarks.gpu.clips import TEXT_TOKENS, Clip, clips
from benchmarks.gpu.models import FP8, TINY_TRANSFORMER, TRANSFORMER, random_transformer
from benchmarks.rows import OURS, Options, Row, measured_row, skipped_row
from benchmarks.transformer import GUIDANCE
from hyvideo_lib.memory.plan import with_reserve
from hyvideo_lib.pipeline import offload_transformer
from hyvideo_lib.pipeline.working import SampleWork
from hyvideo_lib.sampling import GuidanceConfig
from hyvideo_lib.transformer import HunyuanVideoTransformer

CAPS = (24.0, 16.0, 12.0, 8.0)
SYSTEM = 0.5
"""GiB of a card that are the desktop's and the driver's."""


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    config = TINY_TRANSFORMER if options.is_quick else TRANSFORMER
    model = random_transformer(config, FP8, options.device).to("cpu")
    card.empty(options.device)
    for clip in clips(options.is_quick):
        for gib in CAPS:
            case = f"{clip.name} ({clip.tokens} tokens), {gib:g} GiB, fp8"
            if options.wants(case):
                with card.capped(options.device, gib - SYSTEM):
                    yield one_step(model, clip, gib - SYSTEM, case, options)


def one_step(model: HunyuanVideoTransformer, clip: Clip, gib: float, case: str, options: Options) -> Row:
    inputs = clip.inputs(model.config, model.compute_dtype, options.device)
    free = card.free_bytes(options.device, gib)
    assert free is not None
    source = offload_transformer(model)
    lean, working = SampleWork(model, source, clip.latents, TEXT_TOKENS, 1, GuidanceConfig()).fitted(free)
    try:
        source.load(options.device, max(0, free - with_reserve(working)))
        call = lambda: model(**inputs, guidance=GUIDANCE, source=source, lean=lean)  # noqa: E731
        result = card.measure(call, options.device, options.repeats)
        predicted = source.loaded_bytes + working
        plan = {"swapped": source.num_swapped, "head_groups": lean.head_groups, "predicted_bytes": predicted}
    except torch.OutOfMemoryError:
        return skipped_row("gpu caps", case, OURS, card.OUT_OF_MEMORY)
    finally:
        source.go_home()
    return {**measured_row("gpu caps", case, OURS, result), **plan}

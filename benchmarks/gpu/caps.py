"""Which sizes run on a card of so much memory, in 8 bit: the planner's own choices, one step, and its peak.

Where memory runs out all the same, the step goes on further down the ladder, as a run does, and the row says by which
rungs. A cap under which a size runs as under a smaller one is not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.gpu import card
from benchmarks.gpu.clips import TEXT_TOKENS, Clip, clips, cropped
from benchmarks.gpu.kernels import shared_kernel, warm_up
from benchmarks.gpu.models import FP8, random_transformer
from benchmarks.gpu.step import config_of
from benchmarks.gpu.table import Table
from benchmarks.rows import OURS, Measurement, Options, Row, measured_row, skipped_row
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.memory import Offloader
from hyvideo_lib.memory.plan import with_reserve
from hyvideo_lib.pipeline import Ladder, SampleRun, offload_transformer
from hyvideo_lib.pipeline.ladder import load_weights
from hyvideo_lib.pipeline.working import SampleWork
from hyvideo_lib.sampling import GuidanceConfig
from hyvideo_lib.text import TextEmbeds

CAPS = (8.0, 12.0, 16.0, 24.0)
"""GiB. The least first, which decides, and shows what the others need not."""
SIGMAS = (0.5, 0.0)
"""One step, at the noise level of the inputs that other tables use."""
Plan = tuple[int, int, int | None]
"""Blocks in RAM, head groups, tokens at once."""


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    table = Table("gpu caps", options)
    yield from table.rows_of(Capped(table.benchmark, options).cases())


class Capped:
    """One model, whose blocks are pinned once for all caps, and the plans that were measured."""

    def __init__(self, benchmark: str, options: Options) -> None:
        self._benchmark, self._options, self._device = benchmark, options, options.device
        self._config = config_of(options)
        self._source = cache(self._make_source)
        self._known: dict[tuple[Clip, Plan], float] = {}

    def cases(self) -> Iterator[Case]:
        for clip in clips(self._options.is_quick):
            for gib in CAPS:
                case = f"{clip.name} ({clip.tokens} tokens), {gib:g} GiB, fp8"
                yield Case(case, partial(self._rows, clip, gib, case), OURS, clip.operations(self._config))

    def _make_source(self) -> Offloader:
        return offload_transformer(random_transformer(self._config, FP8, self._device).to("cpu"))

    def _rows(self, clip: Clip, gib: float, case: str) -> Iterator[Row]:
        source = self._source()
        with card.capped(self._device, gib):
            try:
                yield self._one_step(source, clip, gib, case)
            finally:
                source.go_home()

    def _one_step(self, source: Offloader, clip: Clip, gib: float, case: str) -> Row:
        model = source.module
        inputs = clip.inputs(self._config, model.compute_dtype, self._device)
        free = card.free_bytes(self._device, gib)
        lean, working = SampleWork(model, source, clip.latents, TEXT_TOKENS, 1, GuidanceConfig()).fitted(free)
        embeds = TextEmbeds(inputs["text_embeds"], inputs["text_mask"].long(), inputs["pooled_embeds"], (0,))
        host, sigmas = HeadlessHost(self._device), torch.tensor(SIGMAS)
        run = SampleRun(model, embeds, None, sigmas, 1.0, host, source=source, lean=lean)
        load_weights(run, source, max(0, free - with_reserve(working)))
        plan = source.num_swapped, lean.head_groups, lean.chunk_tokens
        if (clip, plan) in self._known:
            return skipped_row(self._benchmark, case, OURS, f"as under {self._known[clip, plan]:g} GiB: the same plan")
        predicted = source.loaded_bytes + working
        heads = -(-self._config.num_heads // lean.head_groups)
        warm_up(self._device, model.compute_dtype, heads, clip.tokens, self._config.head_dim)
        card.empty(self._device)
        ladder = Ladder(run)
        before = source.traffic
        result = self._measured(ladder, inputs)
        if not run.rungs:  # else a larger cap may do without them
            self._known[clip, plan] = gib
        lean = ladder.run.lean
        facts = {"swapped": source.num_swapped, "head_groups": lean.head_groups, "chunk_tokens": lean.chunk_tokens}
        more = {**facts, "planned_swapped": plan[0], "predicted_bytes": predicted, "rungs": run.rungs}
        traffic = source.traffic - before
        more |= {"moved_bytes_in_all": traffic.moved_bytes, "stalled_seconds_in_all": traffic.stalled_seconds}
        more["attention"] = shared_kernel(self._device, model.compute_dtype, self._config.head_dim)
        return {**measured_row(self._benchmark, case, OURS, result), **more}

    def _measured(self, ladder: Ladder, inputs: dict[str, Tensor]) -> Measurement:
        """Where it ended on the ladder: again after every rung, whose failed attempt should not count."""
        velocity_fn = ladder.velocity_fn(lambda run: run.velocity_fn(), lambda: None)
        velocity_fn(cropped(inputs)["latents"].float(), SIGMAS[0])
        while True:
            before = len(ladder.run.rungs)
            latents = inputs["latents"].float()
            result = card.measure(lambda x=latents: velocity_fn(x, SIGMAS[0]), self._device, self._options.repeats)
            if len(ladder.run.rungs) == before:
                return result

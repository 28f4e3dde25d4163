"""One prompt through the language model: all layers on the card, and layer by layer under a cap of 8 GiB."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.cases import Case
from benchmarks.gpu import card
from benchmarks.gpu.models import TINY_LLM, random_llm
from benchmarks.gpu.table import Table
from benchmarks.rows import OURS, Options, Row, measured_row
from hyvideo_lib.memory import Offloader
from hyvideo_lib.pipeline import TEXT_WORKING_BYTES
from hyvideo_lib.text import LlamaEncoderConfig

TOKENS = 351
"""The video template's opening and 256 of a prompt."""
CAPS: tuple[float | None, ...] = (8.0, None)
"""GiB; None is the whole card."""


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    config = TINY_LLM if options.is_quick else LlamaEncoderConfig()
    device = options.device
    table = Table("gpu text", options)
    model = random_llm(config, torch.float16 if device.type == "cuda" else torch.float32, device).to("cpu")
    ids = torch.arange(TOKENS, device=device)[None] % config.vocab_size

    def rows(case: str, gib: float | None) -> Iterator[Row]:
        with card.capped(device, gib):
            offloader = Offloader(model, list(model.layers), keep_pinned=False)
            budget = None if gib is None else max(0, card.free_bytes(device, gib) - TEXT_WORKING_BYTES)
            try:
                offloader.load(device, budget)
                swapped = offloader.num_swapped
                with offloader.bringing():
                    call = partial(model, input_ids=ids, use_cache=False)
                    result = card.measure(call, device, options.repeats)
            finally:
                offloader.go_home()
        yield {**measured_row(table.benchmark, case, OURS, result), "swapped": swapped}

    for gib in CAPS:
        case = f"{TOKENS} tokens, 16 bit, {'no cap' if gib is None else f'{gib:g} GiB'}"
        yield from table.rows_of([Case(case, partial(rows, case, gib))])

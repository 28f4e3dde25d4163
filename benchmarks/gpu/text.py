"""One prompt through the language model: all layers on the card, and layer by layer under a cap of 8 GiB."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu import card
from benchmarks.gpu.models import TINY_LLM, random_llm
from benchmarks.rows import OURS, Options, Row, measured_row, skipped_row
from hyvideo_lib.memory import Offloader
from hyvideo_lib.pipeline import TEXT_WORKING_BYTES
from hyvideo_lib.text import LlamaEncoderConfig

TOKENS = 351
"""The video template's opening and 256 of a prompt."""
CAPS: tuple[float | None, ...] = (None, 8.0)


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    config = TINY_LLM if options.is_quick else LlamaEncoderConfig()
    device = options.device
    model = random_llm(config, torch.float16 if device.type == "cuda" else torch.float32, device).to("cpu")
    ids = torch.arange(TOKENS, device=device)[None] % config.vocab_size
    for gib in CAPS:
        case = f"{TOKENS} tokens, 16 bit, {'no cap' if gib is None else f'{gib:g} GiB'}"
        if not options.wants(case):
            continue
        with card.capped(device, gib):
            offloader = Offloader(model, list(model.layers), keep_pinned=False)
            free = card.free_bytes(device, gib)
            try:
                offloader.load(device, None if free is None else max(0, free - TEXT_WORKING_BYTES))
                with offloader.bringing():
                    call = lambda: model(input_ids=ids, use_cache=False)  # noqa: E731 (the hooks are on)
                    result = card.measure(call, device, options.repeats)
            except torch.OutOfMemoryError:
                yield skipped_row("gpu text", case, OURS, card.OUT_OF_MEMORY)
                continue
            finally:
                swapped = offloader.num_swapped
                offloader.go_home()
        yield {**measured_row("gpu text", case, OURS, result), "swapped": swapped}

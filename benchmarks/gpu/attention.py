"""Attention alone, at the lengths of four sizes of video, by every backend that is there and agrees with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu import card
from benchmarks.rows import Options, Row, measured_row, ratio_row, skipped_row
from hyvideo_lib.attention import BACKENDS, verdicts

TOKENS = {"10k": 10_496, "33k": 32_768 + 256, "67k": 67_576, "119k": 119_056}
TINY_TOKENS = {"tiny": 300}
HEADS, HEAD_DIM = 24, 128
PLAIN = "sdpa"


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    (dtype,) = options.dtypes
    found = verdicts(options.device, HEAD_DIM, dtype)
    for name, tokens in (TINY_TOKENS if options.is_quick else TOKENS).items():
        case = f"{name} tokens, {HEADS} heads of {HEAD_DIM}"
        if not options.wants(case):
            continue
        generator = torch.Generator(options.device).manual_seed(0)
        shape = 1, HEADS, tokens, HEAD_DIM
        q, k, v = (torch.randn(shape, device=options.device, dtype=dtype, generator=generator) for _ in range(3))
        expected, results = BACKENDS[PLAIN].load_fn()(q, k, v), {}
        for backend, verdict in found.items():
            if not verdict:
                yield skipped_row("gpu attention", case, backend, verdict.reason)
                continue
            kernel = BACKENDS[backend].load_fn()
            try:
                results[backend] = card.measure(lambda f=kernel, x=(q, k, v): f(*x), options.device, options.repeats)
                cosine = torch.cosine_similarity(kernel(q, k, v).flatten(0, 2), expected.flatten(0, 2), dim=-1).min()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                yield skipped_row("gpu attention", case, backend, str(error).splitlines()[0])
                continue
            row = measured_row("gpu attention", case, backend, results[backend])
            operations = 4 * tokens**2 * HEADS * HEAD_DIM
            yield {**row, "tflops": operations / row["seconds"] / 1e12, "least_cosine_of_a_token": float(cosine)}
        for backend in results.keys() - {PLAIN}:
            yield {**ratio_row("gpu attention", case, PLAIN, results[backend], results[PLAIN]), "of": backend}

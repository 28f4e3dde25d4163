"""Attention alone, at the lengths of four sizes of video, by every backend that is there and agrees with PyTorch's.

PyTorch's own is measured as it chooses by itself, and with each of its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from benchmarks.cases import Case
from benchmarks.gpu import card
from benchmarks.gpu.kernels import KERNELS
from benchmarks.gpu.table import Table
from benchmarks.rows import Measurement, Options, Row, measured_row, skipped_row
from hyvideo_lib.attention import BACKENDS, Kernel, verdicts

TOKENS = {"119k": 119_056, "67k": 67_576, "33k": 32_768 + 256, "10k": 10_496}
TINY_TOKENS = {"tiny": 300}
HEADS, HEAD_DIM = 24, 128
PLAIN = "sdpa"
CHOSEN = ("sdpa flash", "sdpa cudnn", "sdpa efficient")
"""The kernel named math holds all scores at once: 680 GB at 119k tokens."""

Heads = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    table = Table("gpu attention", options)
    for name, tokens in (TINY_TOKENS if options.is_quick else TOKENS).items():
        yield from table.rows_of(Length(table.benchmark, name, tokens, options).cases())


class Length:
    """Queries, keys and values of so many tokens, and all that attends over them."""

    def __init__(self, benchmark: str, name: str, tokens: int, options: Options) -> None:
        (self._dtype,) = options.dtypes
        self._benchmark, self._options, self._tokens = benchmark, options, tokens
        self._case = f"{name} tokens, {HEADS} heads of {HEAD_DIM}"
        self._operations = 4.0 * tokens**2 * HEADS * HEAD_DIM
        self._heads = cache(self._make_heads)
        self._expected = cache(lambda: BACKENDS[PLAIN].load_fn()(*self._heads()).cpu())
        self._results: dict[str, Measurement] = {}

    def cases(self) -> Iterator[Case]:
        """PyTorch's own first, which the others are compared with."""
        found = verdicts(self._options.device, HEAD_DIM, self._dtype)
        rows: dict[str, Callable[[], Iterator[Row]]] = {}
        for name, verdict in found.items():
            rows[name] = (
                partial(self._rows, name, BACKENDS[name].load_fn)
                if verdict
                else partial(self._absent, name, verdict.reason)
            )
        rows |= {name: partial(self._rows, name, partial(one_kernel, name)) for name in CHOSEN if name in KERNELS}
        yield Case(self._case, rows.pop(PLAIN), PLAIN, self._operations)
        for name, make in rows.items():
            yield Case(self._case, make, name, self._operations)

    def _make_heads(self) -> Heads:
        generator = torch.Generator(self._options.device).manual_seed(0)
        shape = 1, HEADS, self._tokens, HEAD_DIM
        q, k, v = (
            torch.randn(shape, device=self._options.device, dtype=self._dtype, generator=generator) for _ in range(3)
        )
        return q, k, v

    def _absent(self, name: str, reason: str) -> Iterator[Row]:
        yield skipped_row(self._benchmark, self._case, name, reason)

    def _rows(self, name: str, load: Callable[[], Kernel]) -> Iterator[Row]:
        kernel, cosine = load(), 0.0

        def look(made: Tensor) -> None:
            nonlocal cosine
            cosine = least_cosine(made, self._expected())

        result = card.measure(lambda: kernel(*self._heads()), self._options.device, self._options.repeats, look)
        self._results[name] = result
        row = measured_row(self._benchmark, self._case, name, result)
        yield {**row, "tflops": self._operations / row["seconds"] / 1e12, "least_cosine_of_a_token": cosine}
        plain = self._results.get(PLAIN)
        if name != PLAIN and plain:
            yield {**card.ratio_apart(self._benchmark, self._case, PLAIN, result, plain), "of": name}


def one_kernel(name: str) -> Kernel:
    """PyTorch's attention by the kernel of that name and no other."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(KERNELS[name]):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def least_cosine(one: Tensor, other: Tensor) -> float:
    """Of the token and head [B, N, L, D] where both point apart the most; a head at a time, in float32.

    In 16 bits the cosine itself is rounded, and equal tensors seem to differ.
    """
    pairs = zip(one.unbind(1), other.unbind(1), strict=True)
    return min(F.cosine_similarity(a.float(), b.to(a.device).float(), dim=-1).min().item() for a, b in pairs)

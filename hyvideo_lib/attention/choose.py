"""From a name to the backend that runs: the one that was named, or the fastest that agrees with PyTorch's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..device import on_device
from ..errors import InvalidSetting, MissingPackage, OutOfMemory
from .api import AUTO, BACKENDS, AttendFn, attend
from .backend import Backend, Kernel
from .probe import TRIED_TOKENS, UNSUPPORTED, Verdict, probe
from .sdpa import SDPA

logger = logging.getLogger("hyvideo")

MIN_BUCKET, MAX_BUCKET = 1024, 65_536
"""Tokens of the problems that are timed. A longer one tells nothing new and takes longer."""
HEAD_TOKENS = 2**18
"""Heads times tokens of those problems, which fills a card at every length."""
ROUNDS = 3


@dataclass(frozen=True)
class Problem:
    """What decides which kernel is the fastest. tokens: of image and text together."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    num_heads: int
    tokens: int

    @property
    def bucket(self) -> Problem:
        """The problem that is timed for all of about this size."""
        tokens = min(max(MIN_BUCKET, 1 << (self.tokens - 1).bit_length()), MAX_BUCKET)
        num_heads = max(1, min(self.num_heads, HEAD_TOKENS // tokens))
        return Problem(self.device, self.dtype, self.head_dim, num_heads, tokens)


@dataclass(frozen=True)
class Attention:
    """The backend that runs, by its name, and its function."""

    name: str
    attend_fn: AttendFn


PLAIN = Attention(SDPA.name, attend)
"""PyTorch's own."""

TimeFn = Callable[[Kernel, Problem], float]
_seconds: dict[tuple[Problem, str], float] = {}
"""Of backends on the problem of a bucket; infinite for one that gives up on it."""


def attention_names() -> list[str]:
    """What can be asked for."""
    return [AUTO, *BACKENDS]


def check_backend(
    name: str, device: torch.device, head_dim: int, dtype: torch.dtype, tokens: int = TRIED_TOKENS
) -> Backend:
    """The named backend, tried on so many tokens at most.

    Raises InvalidSetting for an unknown one or one that cannot run, MissingPackage where it is not installed; both say
    how to get it. OutOfMemory where there is none to try it.
    """
    if name not in BACKENDS:
        raise InvalidSetting(f"attention is {name!r}, but must be one of: {', '.join(attention_names())}.")
    backend = BACKENDS[name]
    verdict = probe(backend, device, head_dim, dtype, min(tokens, TRIED_TOKENS))
    if verdict:
        return backend
    if verdict.is_short:
        raise OutOfMemory(f"The attention {name} {verdict.reason}. Free memory there, or take auto or sdpa.")
    text = f"The attention {name} {verdict.reason}. {backend.install} Or take auto or sdpa, which need nothing more."
    raise MissingPackage(text) if verdict.is_missing else InvalidSetting(text)


def choose_attention(name: str, problem: Problem) -> Attention:
    """What is to run for a name of `attention_names`. Raises what `check_backend` raises.

    "auto" is PyTorch's own on a CPU and where nothing else agrees with it; elsewhere the candidates are timed once for
    every size, and the answer is kept as long as the process lives.
    """
    if name == AUTO:
        backend = BACKENDS[SDPA.name] if problem.device.type == "cpu" else fastest(agreeing(problem), problem)
    else:
        backend = check_backend(name, problem.device, problem.head_dim, problem.dtype, problem.tokens)
    if backend is SDPA:
        return PLAIN
    return Attention(backend.name, partial(attend, kernel=backend.load_fn()))


def verdicts(device: torch.device, head_dim: int, dtype: torch.dtype) -> dict[str, Verdict]:
    """What the probe says of every backend."""
    return {name: probe(backend, device, head_dim, dtype) for name, backend in BACKENDS.items()}


def agreeing(problem: Problem) -> list[Backend]:
    """The exact backends that work, PyTorch's own among them."""
    found = [b for b in BACKENDS.values() if b.is_exact and b is not SDPA]
    tokens = min(problem.tokens, TRIED_TOKENS)
    return [SDPA, *(b for b in found if probe(b, problem.device, problem.head_dim, problem.dtype, tokens))]


def fastest(backends: Sequence[Backend], problem: Problem, time_fn: TimeFn | None = None) -> Backend:
    """The one that takes the least time, each timed once for a problem's bucket. One that fails there is passed over,
    and tried again the next time if that may pass, as a lack of memory does."""
    if len(backends) == 1:
        return backends[0]
    bucket = problem.bucket
    for backend in backends:
        key = bucket, backend.name
        try:
            if key not in _seconds:
                with on_device(problem.device):
                    _seconds[key] = (time_fn or seconds_of)(backend.load_fn(), bucket)
        except UNSUPPORTED:  # a kernel may give up at a length that the probe did not try
            _seconds[key] = float("inf")
        except Exception as error:
            logger.info("attention %s was passed over: %s", backend.name, error)
    return min(backends, key=lambda backend: _seconds.get((bucket, backend.name), float("inf")))


@torch.no_grad()
def seconds_of(kernel: Kernel, problem: Problem) -> float:
    """The least time of a few rounds, after one that is not timed."""
    shape = 3, 1, problem.num_heads, problem.tokens, problem.head_dim
    q, k, v = torch.randn(*shape, device=problem.device, dtype=problem.dtype)
    seconds = []
    for _ in range(1 + ROUNDS):
        _wait(problem.device)
        begin = time.perf_counter()
        kernel(q, k, v)
        _wait(problem.device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    """For the current device of this kind: Apple's takes no other."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()

"""What would make a stage fit that does not: only what is not set already, each with what the plan says of it then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..memory import BlockSwap
from ..memory.machine import Machine, gib
from ..memory.plan import StagePlan, Way, Weights, plan_stage, with_reserve
from ..transformer import LeanConfig
from ..transformer.lean_config import lean_steps
from ..vae import CausalVideoVAE
from .plan_terms import COMMAND_LINE, Terms
from .request import GenerateRequest
from .sampler import offload_transformer
from .sketch import TextSketch, is_wide, weights_of
from .tiles import FIT, VAEWork
from .working import SampleWork

EIGHT_BITS = "float8_e4m3fn"
SHARES = ((3, 4), (1, 2), (1, 4))
"""Of the frames that were asked for: what is tried in their place."""


def fewer_frames(frames: int) -> list[int]:
    """Smaller numbers of the form 4k + 1, the largest first: three quarters, half and a quarter of that, and one."""
    found = [4 * (frames * part // whole // 4) + 1 for part, whole in SHARES]
    return [count for count in dict.fromkeys([*found, 1]) if count < frames]


def half_size(width: int, height: int) -> tuple[int, int]:
    """About half of each side, in multiples of 16."""
    return max(16, width // 32 * 16), max(16, height // 32 * 16)


def advise_text(llm: TextSketch, is_device: bool, terms: Terms = COMMAND_LINE) -> Iterator[str]:
    """is_device: whether it computes elsewhere than in RAM. terms: what settings are called where it is shown."""
    if llm.is_wide:
        yield "try a language model file in 8 bits: it takes about half"
    if is_device:
        yield f"try encoding on the CPU: {terms.text_on_cpu}"


class SampleAdvice:
    """What would make sampling fit. work, swap: as they were planned. terms: what settings are called."""

    def __init__(
        self,
        stage: StagePlan,
        request: GenerateRequest,
        work: SampleWork,
        machine: Machine,
        swap: BlockSwap,
        terms: Terms = COMMAND_LINE,
    ) -> None:
        self._stage, self._request, self._machine, self._swap, self._terms = stage, request, machine, swap, terms
        self._work = replace(work, guidance=replace(request.guidance, batched=False))

    def lines(self, narrow: SampleWork | None) -> Iterator[str]:
        """narrow: the same with weights in 8 bits; None if they are, or if that is no help."""
        stage, swap, terms = self._stage, self._swap, self._terms
        if stage.held_short and not stage.weights.is_mapped:
            yield (
                "try a file that is stored so already (hyvideo convert --storage): weights that are converted for the "
                f"run take {gib(stage.ram.converted)} of RAM, those of a file only where there is room"
            )
        if narrow is not None and stage.device_short:
            yield from self._tried(terms.storage.format(dtype=EIGHT_BITS), self._plan(narrow, _weights(narrow)))
        if stage.swapped and swap.prefetch:
            yield from self._tried(terms.no_prefetch, self._plan(self._work, swap=replace(swap, prefetch=0)))
        cache = self._request.cache
        if cache is not None and not cache.on_host and stage.device_short:
            on_host = replace(self._work, cache=replace(cache, on_host=True))
            yield from self._tried(terms.cache_on_host, self._plan(on_host))
        yield from self._smaller()

    def _smaller(self) -> Iterator[str]:
        stage, request, free = self._stage, self._request, self._machine.gpu_free
        if free is not None and stage.resident + with_reserve(0) > free:
            need = gib(stage.resident + with_reserve(0))
            yield f"no smaller or shorter video fits: its weights alone need {need}, what is kept free included"
            return
        for frames in fewer_frames(request.frames):
            plan = self._plan_video(replace(request, frames=frames))
            if plan.fits:
                yield from self._tried(self._terms.frames.format(frames=frames), plan)
                return
        width, height = half_size(request.width, request.height)
        plan = self._plan_video(replace(request, width=width, height=height))
        yield from self._tried(self._terms.size.format(width=width, height=height), plan)

    def _plan_video(self, request: GenerateRequest) -> StagePlan:
        return self._plan(replace(self._work, latent_shape=request.latent_shape))

    def _plan(self, work: SampleWork, weights: Weights | None = None, swap: BlockSwap | None = None) -> StagePlan:
        """In the way that takes the least."""
        free = self._machine.gpu_free
        lean = LeanConfig() if free is None else lean_steps(work.model.config.num_heads)[-1]
        way = Way("", work.bytes_in(lean), ram=work.ram_bytes)
        ram = self._machine.ram_free
        return plan_stage("sample", weights or self._stage.weights, [way], free, ram, swap or self._swap)

    def _tried(self, what: str, plan: StagePlan) -> Iterator[str]:
        yield from tried(what, self._stage, plan)


def _weights(work: SampleWork) -> Weights:
    source = work.source or offload_transformer(work.model)
    return weights_of(source, len(work.model.double_blocks), is_mapped=False)


def advise_decode(
    stage: StagePlan,
    vaes: tuple[CausalVideoVAE, CausalVideoVAE],
    size: tuple[int, int, int],
    machine: Machine,
    device: torch.device,
    terms: Terms = COMMAND_LINE,
) -> Iterator[str]:
    """vaes: as it is, and in 16 bits. size: frames, height and width. What is planned is in the smallest tiles.

    terms: what settings are called where it is shown.
    """

    def plan(vae: CausalVideoVAE, size: tuple[int, int, int]) -> StagePlan:
        weights = Weights(sum(parameter.nbytes for parameter in vae.parameters()))
        work = VAEWork.of(vae, *size, device)
        way = Way("", work.num_bytes(work.choose(FIT, 0)))
        return plan_stage("decode", weights, [way], machine.gpu_free, machine.ram_free, BlockSwap())

    frames, height, width = size
    if is_wide(vaes[0], 2):
        yield from tried(terms.vae_dtype, stage, plan(vaes[1], size))
    width, height = half_size(width, height)
    what = terms.size.format(width=width, height=height)
    smaller = list(tried(what, stage, plan(vaes[0], (frames, height, width))))
    yield from smaller or ["no smaller tiles are left, and a smaller picture takes no less: close other programs"]


def tried(what: str, before: StagePlan, after: StagePlan) -> Iterator[str]:
    """A sentence on what comes of it; none if that is nothing."""
    if after.fits:
        need = after.ram.held if after.device_bytes is None else after.device_bytes + after.reserve
        yield f"try {what}: it fits then, with {gib(need)}"
    elif _short(after) < _short(before):
        yield f"try {what}: still short by {gib(_short(after))}, so not alone"


def _short(stage: StagePlan) -> int:
    return stage.device_short + stage.held_short

"""What would make a stage fit that does not: only what is not set already, each with what the plan says of it then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from ..memory import BlockSwap
from ..memory.machine import Machine, gib
from ..memory.plan import StagePlan, Way, Weights, plan_stage, with_reserve
from ..transformer import LeanConfig
from ..transformer.lean_config import lean_steps
from ..vae import CausalVideoVAE, Tiles, TinyVAE
from .plan_terms import COMMAND_LINE, Terms
from .request import GenerateRequest
from .sampler import offload_transformer
from .sketch import TextSketch, is_wide, weights_of
from .tiles import FIT, VAEWork
from .working import SampleWork

VAE = CausalVideoVAE | TinyVAE
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


class Change(NamedTuple):
    """options: that say it. work: fields of a SampleWork, and around: of a Setting, with what they are then."""

    options: str
    work: Mapping[str, Any] = MappingProxyType({})
    around: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Setting:
    """What sampling is planned with. options: those that say what of it was changed."""

    options: tuple[str, ...]
    work: SampleWork
    weights: Weights
    swap: BlockSwap

    def after(self, changes: Iterable[Change]) -> Setting:
        changed = self
        for options, work, around in changes:
            changed = replace(
                changed, options=(*changed.options, options), work=replace(changed.work, **work), **around
            )
        return changed


def smaller_videos(request: GenerateRequest, terms: Terms) -> Iterator[Change]:
    """Shorter, then half as wide and high, then both."""
    counts = fewer_frames(request.frames)
    whole, half = (request.width, request.height), half_size(request.width, request.height)
    sizes = [*((whole, frames) for frames in counts), *((half, frames) for frames in (request.frames, *counts[-1:]))]
    for (width, height), frames in sizes:
        options = [terms.size.format(width=width, height=height)] if (width, height) == half else []
        options += [terms.frames.format(frames=frames)] if frames != request.frames else []
        video = replace(request, width=width, height=height, frames=frames)
        yield Change(terms.also.join(options), {"latent_shape": video.latent_shape})


class SampleAdvice:
    """What would make sampling fit. work, swap: as they were planned. narrow: the same work with weights in 8 bits;
    None if they are, or if that is no help. is_fixed: whether the video's size is that of what it begins with.
    terms: what settings are called where it is shown.
    """

    def __init__(
        self,
        stage: StagePlan,
        request: GenerateRequest,
        work: SampleWork,
        machine: Machine,
        swap: BlockSwap,
        narrow: SampleWork | None,
        is_fixed: bool = False,
        terms: Terms = COMMAND_LINE,
    ) -> None:
        self._terms = terms
        self._stage, self._request, self._machine = stage, request, machine
        self._narrow, self._is_fixed = narrow, is_fixed
        in_turn = replace(work, guidance=replace(request.guidance, batched=False))  # as a run does where it must
        self._asked = Setting((), in_turn, stage.weights, swap)

    def lines(self) -> Iterator[str]:
        """The fewest options that make it fit, or a smaller video with all that help."""
        stage = self._stage
        if stage.held_short and not stage.weights.is_mapped:
            yield (
                "try a file that is stored so already (hyvideo convert --storage): weights that are converted for the "
                f"run take {gib(stage.ram.converted)} of RAM, those of a file only where there is room"
            )
        changes = list(self._changes())
        for count in range(1, len(changes) + 1):
            lines = [line for some in combinations(changes, count) for line in self._fitting(some)]
            if lines:
                yield from lines
                yield from self._smaller([])
                return
        helping = [change for change in changes if _short(self._plan(self._asked.after([change]))) < _short(stage)]
        yield from list(self._smaller(helping)) or [self._hopeless(helping)]

    def _changes(self) -> Iterator[Change]:
        """What is not set already, and may help."""
        stage, cache, narrow, swap = self._stage, self._request.cache, self._narrow, self._asked.swap
        terms = self._terms
        if narrow is not None and stage.device_short:
            work = {"model": narrow.model, "source": narrow.source}
            yield Change(terms.storage.format(dtype=EIGHT_BITS), work, {"weights": _weights(narrow)})
        if stage.swapped and swap.prefetch:
            yield Change(terms.no_prefetch, around={"swap": replace(swap, prefetch=0)})
        if cache is not None and not cache.on_host and stage.device_short:
            yield Change(terms.cache_on_host, {"cache": replace(cache, on_host=True)})

    def _smaller(self, changes: Sequence[Change]) -> Iterator[str]:
        """The first of the smaller videos that fits, with these changes; nothing where none does."""
        videos = () if self._is_fixed else smaller_videos(self._request, self._terms)
        found = (line for video in videos for line in self._fitting([*changes, video]))
        yield from islice(found, 1)

    def _hopeless(self, changes: Sequence[Change]) -> str:
        smallest = [] if self._is_fixed else [*smaller_videos(self._request, self._terms)][-1:]
        setting = self._asked.after([*changes, *smallest])
        plan, free = self._plan(setting), self._machine.gpu_free
        reason = "its size is that of the latents" if self._is_fixed else "no smaller or shorter video fits"
        beside = f" even with {self._terms.also.join(setting.options)}" if setting.options else ""
        if free is not None and plan.resident + with_reserve(0) > free:
            need = gib(plan.resident + with_reserve(0))
            return f"{reason}: its weights alone need {need}{beside}, what is kept free included"
        return f"{reason}: it is short by {gib(_short(plan))}{beside}"

    def _fitting(self, changes: Iterable[Change]) -> Iterator[str]:
        setting = self._asked.after(changes)
        plan = self._plan(setting)
        if plan.fits:
            yield from tried(self._terms.also.join(setting.options), self._stage, plan)

    def _plan(self, setting: Setting) -> StagePlan:
        """In the way that takes the least."""
        free, work = self._machine.gpu_free, setting.work
        lean = LeanConfig() if free is None else lean_steps(work.model.config.num_heads)[-1]
        way = Way("", work.bytes_in(lean), ram=work.ram_bytes)
        return plan_stage("sample", setting.weights, [way], free, self._machine.ram_free, setting.swap)


def _weights(work: SampleWork) -> Weights:
    source = work.source or offload_transformer(work.model)
    return weights_of(source, len(work.model.double_blocks), is_mapped=False)


def advise_vae(
    stage: StagePlan,
    vaes: tuple[VAE, VAE],
    size: tuple[int, int, int],
    machine: Machine,
    device: torch.device,
    is_fixed: bool = False,
    terms: Terms = COMMAND_LINE,
) -> Iterator[str]:
    """stage: of encoding or decoding. vaes: as it is, and in 16 bits. size: frames, height and width, which another
    video cannot have if it is_fixed. What is planned is in the smallest tiles.
    """

    def plan(vae: VAE, size: tuple[int, int, int]) -> StagePlan:
        weights = Weights(sum(parameter.nbytes for parameter in vae.parameters()))
        work = VAEWork.of(vae, *size, device, stage.name == "encode")
        way = Way("", work.num_bytes(work.choose(FIT, 0)))
        return plan_stage(stage.name, weights, [way], machine.gpu_free, machine.ram_free, BlockSwap())

    frames, height, width = size
    if is_wide(vaes[0], 2):
        yield from tried(terms.vae_dtype, stage, plan(vaes[1], size))
    if is_fixed:
        yield "no smaller tiles are left, and its size is that of the latents: close other programs"
        return
    width, height = half_size(width, height)
    what = terms.size.format(width=width, height=height)
    smaller = list(tried(what, stage, plan(vaes[0], (frames, height, width))))
    yield from smaller or ["no smaller tiles are left, and a smaller picture takes no less: close other programs"]


def fit_in_place_of(asked: Tiles | None, stage: str, terms: Terms) -> str:
    """The whole change, without what else was said of tiles, beside which it is refused."""
    more = terms.beside_tiles.items()
    given = [option for name, option in more if asked and getattr(asked, name) != getattr(Tiles, name)]
    fit = terms.tiles_fit.format(node={"encode": "Encode Video", "decode": "Decode"}[stage])
    return fit + (f" without {' and '.join(given)}" if given else "")


def tried(what: str, before: StagePlan, after: StagePlan) -> Iterator[str]:
    """A sentence on what comes of it; none if that is nothing."""
    if after.fits:
        need = after.ram.held if after.device_bytes is None else after.device_bytes + after.reserve
        yield f"try {what}: it fits then, with {gib(need)}"
    elif _short(after) < _short(before):
        yield f"try {what}: still short by {gib(_short(after))}, so not alone"


def _short(stage: StagePlan) -> int:
    return stage.device_short + stage.held_short

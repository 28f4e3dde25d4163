"""What a run would take on a machine, before anything is loaded: peak memory per stage, and what makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..errors import InvalidSetting
from ..memory import BlockSwap
from ..memory.estimate import text_bytes
from ..memory.machine import Machine
from ..memory.plan import PROCESS_BYTES, StagePlan, Way, Weights, block_flops, plan_stage
from ..transformer import HunyuanVideoTransformer, LeanConfig
from ..vae import CausalVideoVAE, Tiles, TinyVAE
from .files import PlannedFiles
from .ladder import describe_lean
from .loras import load_loras
from .plan_advice import EIGHT_BITS, SampleAdvice, advise_text, advise_vae, fit_in_place_of
from .plan_steps import RunCost, cost_steps
from .plan_terms import BY_ITSELF, COMMAND_LINE, Terms
from .precision import Precision
from .report import describe_tiles
from .request import TEXT_TOKENS, GenerateRequest
from .sampler import offload_transformer
from .sketch import is_mapped, is_wide, sketch_text, sketch_transformer, sketch_vae, weights_of
from .tiles import FIT, FIT_SHARED, VAEWork
from .working import SampleWork

TEMPLATE_TOKENS = 95
NOISE, VIDEO, LATENTS = "noise", "video", "latents"
"""What a run begins with. A video is encoded first."""


@dataclass(frozen=True)
class Plan:
    """Stages in their order, and what the steps of sampling cost."""

    machine: Machine
    stages: tuple[StagePlan, ...]
    cost: RunCost

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def fits_as_asked(self) -> bool:
        return all(stage.fits_as_asked for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "fits": self.fits if self.machine.is_known else None,
            "fits_as_asked": self.fits_as_asked if self.machine.is_known else None,
            "machine": {
                "card": self.machine.name or None,
                "gpu_total_bytes": self.machine.gpu_total,
                "gpu_bytes": self.machine.gpu_free,
                "ram_bytes": self.machine.ram_free,
                "link_bytes_per_second": self.machine.link,
            },
            "stages": {stage.name: _stage_dict(stage, self.machine) for stage in self.stages},
            "step": self.cost.to_dict(self.machine.link),
        }


def plan_run(
    request: GenerateRequest,
    files: PlannedFiles,
    precision: Precision,
    machine: Machine,
    device: torch.device,
    swap: BlockSwap = BlockSwap(),  # noqa: B008 (frozen)
    start: str = NOISE,
    terms: Terms = COMMAND_LINE,
) -> Plan:
    """Plan a request on a machine. device: the kind that it computes on. Reads headers only, and LoRAs.

    start: NOISE, VIDEO or LATENTS. terms: what settings are called where the plan is shown.

    Raises what checking the files and reading the LoRAs raises, and InvalidSetting for weights that cannot rest as
    asked, or a step cache that cannot be used with this transformer.
    """
    model = sketch_transformer(files.transformer, precision, device)
    if request.cache:
        config = model.config
        sizes = config.hidden_size, config.num_double_blocks, config.num_single_blocks
        request.cache.curve_for(sizes, request.width * request.height)  # refuses a model it has no ratios for
    sample, work = _plan_sample(
        request, model, precision.attention, is_mapped(files.transformer, precision), machine, swap
    )
    vae = sketch_vae(files.vae, precision, device)
    stages = (
        *([_plan_vae("encode", request, vae, machine, device, terms)] if start == VIDEO else []),
        _plan_text(files, precision, machine),
        sample,
        _plan_vae("decode", request, vae, machine, device, terms),
    )

    def advise(stage: StagePlan) -> Iterator[str]:
        if stage.name == "text":
            return advise_text(sketch_text("llm", files.llm, precision), machine.gpu_free is not None, terms)
        if stage.name != "sample":
            vaes = vae, sketch_vae(files.vae, replace(precision, vae="float16"), device)
            size = request.frames, request.height, request.width
            return advise_vae(stage, vaes, size, machine, device, start == LATENTS, terms)
        narrow = None
        if is_wide(model):
            slim = sketch_transformer(files.transformer, replace(precision, storage=EIGHT_BITS), device)
            narrow = replace(work, model=slim, source=offload_transformer(slim, swap))
        return SampleAdvice(stage, request, work, machine, swap, narrow, start == LATENTS, terms).lines()

    advised = tuple(stage if stage.fits else replace(stage, advice=tuple(advise(stage))) for stage in stages)
    flops = block_flops(model.config.hidden_size, model.config.mlp_ratio, work.tokens)
    speed = machine.speed if machine.gpu_free is not None and precision.product is None else None  # it is of 16 bits
    return Plan(machine, advised, cost_steps(request, sample, flops, speed, swap.prefetch, machine.link))


def _plan_sample(
    request: GenerateRequest,
    model: HunyuanVideoTransformer,
    attention: str,
    is_mapped: bool,
    machine: Machine,
    swap: BlockSwap,
) -> tuple[StagePlan, SampleWork]:
    """model: on the meta device. is_mapped: whether its weights stay in their file."""
    offloader = offload_transformer(model, swap)
    is_home, cache = machine.gpu_free is None, request.cache
    work = SampleWork(
        model,
        offloader,
        request.latent_shape,
        TEXT_TOKENS,
        max(1, round(request.steps * request.strength)),
        request.guidance,
        replace(cache, on_host=False) if cache and is_home else cache,
        load_loras(request.loras, model.config) if request.loras else (),
        attention,
    )
    weights = weights_of(offloader, len(model.double_blocks), is_mapped)
    ways = _sample_ways(request, work, machine.gpu_free)
    return plan_stage("sample", weights, ways, machine.gpu_free, machine.ram_free, swap), work


def _sample_ways(request: GenerateRequest, work: SampleWork, free: int | None) -> Iterator[Way]:
    """As asked, then with less memory and more time; the blocks as lean as needed. A run does all that by itself."""
    is_batched = request.guidance.uses_cfg and request.guidance.batched
    for batched in (True, False) if is_batched else (request.guidance.batched,):
        calls = 2 if request.guidance.uses_cfg and not batched else 1
        lean, num_bytes = replace(work, guidance=replace(request.guidance, batched=batched)).fitted(free)
        labels = ["CFG in turn"] if is_batched and not batched else []
        labels += [describe_lean(lean)] if lean != LeanConfig() else []
        label = f"{' and '.join(labels)}, {BY_ITSELF}" if labels else ""
        yield Way(label, num_bytes, calls, ram=work.ram_bytes)


def _plan_text(files: PlannedFiles, precision: Precision, machine: Machine) -> StagePlan:
    llm, clip = (sketch_text(role, getattr(files, role), precision) for role in ("llm", "clip"))
    tokens = TEXT_TOKENS + TEMPLATE_TOKENS
    work = text_bytes(llm.hidden_size, llm.inner_size, tokens, llm.item_size, llm.is_cast)
    weights = Weights(llm.weights.fixed + clip.weights.num_bytes, llm.weights.blocks)
    return plan_stage("text", weights, [Way("", work)], machine.gpu_free, machine.ram_free, BlockSwap(), False)


def _plan_vae(
    name: str,
    request: GenerateRequest,
    vae: CausalVideoVAE | TinyVAE,
    machine: Machine,
    device: torch.device,
    terms: Terms,
) -> StagePlan:
    """name: "encode" or "decode". Raises InvalidSetting for a VAE that does not encode."""
    if name == "encode" and vae.cannot_encode:
        raise InvalidSetting(vae.cannot_encode)
    weights = Weights(sum(parameter.nbytes for parameter in vae.parameters()))
    work = VAEWork.of(vae, request.frames, request.height, request.width, device, name == "encode")
    free = machine.gpu_free
    if free is None and machine.ram_free is not None:
        free = machine.ram_free - PROCESS_BYTES
    room = None if free is None else max(0, free - weights.num_bytes)

    def ways() -> Iterator[Way]:
        asked = request.tiles
        if isinstance(asked, str):
            tiles = work.choose(asked, room)
            yield way(tiles, BY_ITSELF if tiles else "")
            return
        yield way(asked, "")
        tiles = work.choose(FIT_SHARED if asked and asked.shared_norms else FIT, room)
        if tiles and work.num_bytes(tiles) < work.num_bytes(asked):
            yield replace(way(tiles, fit_in_place_of(asked, name, terms)), is_asked=False)

    def way(tiles: Tiles | None, how: str) -> Way:
        return Way(f"tiles {describe_tiles(tiles)}, {how}" if how else "", work.num_bytes(tiles))

    return plan_stage(name, weights, ways(), machine.gpu_free, machine.ram_free, BlockSwap())


def _stage_dict(stage: StagePlan, machine: Machine) -> dict[str, Any]:
    is_checked = machine.ram_free is not None
    return {
        "fits": stage.fits if machine.is_known else None,
        "fits_as_asked": stage.fits_as_asked if machine.is_known else None,
        "gpu_peak_bytes": stage.device_bytes,
        "gpu_reserve_bytes": stage.reserve,
        "gpu_short_bytes": stage.device_short,
        "ram_peak_bytes": stage.ram_bytes,
        "ram_held_bytes": stage.ram.held,
        "ram_short_bytes": stage.ram_short,
        "ram_held_short_bytes": stage.held_short if is_checked else None,
        "ram_files_short_bytes": stage.files_short if is_checked else None,
        "ram": asdict(stage.ram),
        "weights_bytes": stage.weights.num_bytes,
        "resident_bytes": stage.resident,
        "working_bytes": stage.way.work,
        "swapped_blocks": len(stage.swapped),
        "setting": stage.way.label or None,
        "advice": list(stage.advice),
    }

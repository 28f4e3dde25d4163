"""What a run would take on a machine, before anything is loaded: peak memory per stage, and what makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..memory import BlockSwap
from ..memory.estimate import text_bytes
from ..memory.machine import Machine, gib
from ..memory.plan import PROCESS_BYTES, StagePlan, Way, Weights, block_flops, plan_stage, step_cost
from ..memory.simulate import StreamCost
from ..transformer import LeanConfig
from ..vae import Tiles
from .ladder import describe_lean
from .loras import load_loras
from .precision import Precision
from .report import describe_tiles
from .request import GenerateRequest
from .sampler import offload_transformer
from .sketch import sketch_text, sketch_transformer, sketch_vae, weights_of
from .tiles import FIT, VAEWork
from .working import SampleWork

TEXT_TOKENS = 256
"""The longest prompt there is; shorter ones take a little less."""
TEMPLATE_TOKENS = 95


@dataclass(frozen=True)
class PlannedFiles:
    """Where the models are; None stands for the released one."""

    transformer: Path | None = None
    vae: Path | None = None
    llm: Path | None = None
    clip: Path | None = None


@dataclass(frozen=True)
class Plan:
    """Stages in their order. step: simulated cost of one step on a card of known speed, computed and not measured; None
    also for products in 8 bits, at which the speed is not known.
    step_flops: of one step. passes: of the model in a step."""

    machine: Machine
    stages: tuple[StagePlan, ...]
    step_flops: float
    passes: int
    step: StreamCost | None

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "fits": self.fits,
            "machine": {
                "card": self.machine.name or None,
                "gpu_bytes": self.machine.gpu_free,
                "ram_bytes": self.machine.ram_free,
                "link_bytes_per_second": self.machine.link,
            },
            "stages": {stage.name: _stage_dict(stage) for stage in self.stages},
            "step": {
                "kind": "computed",
                "flops": self.step_flops,
                "seconds_at_least": self.step.seconds if self.step else None,
                "stalled_seconds": self.step.stalled if self.step else None,
                "moved_bytes": self.step.moved if self.step else None,
            },
        }


def plan_run(
    request: GenerateRequest,
    files: PlannedFiles,
    precision: Precision,
    machine: Machine,
    device: torch.device,
    swap: BlockSwap = BlockSwap(),  # noqa: B008 (frozen)
) -> Plan:
    """Plan a request on a machine. device: the kind that it computes on. Reads headers only, and LoRAs.

    Raises what checking the files and reading the LoRAs raises, and InvalidSetting for weights that cannot rest as
    asked, or a step cache that cannot be used with this transformer.
    """
    model = sketch_transformer(files.transformer, precision, device)
    offloader = offload_transformer(model, swap)
    weights = weights_of(offloader, len(model.double_blocks))
    if request.cache:
        config = model.config
        sizes = config.hidden_size, config.num_double_blocks, config.num_single_blocks
        request.cache.curve_for(sizes, request.width * request.height)  # refuses a model it has no ratios for
    work = SampleWork(
        model,
        offloader,
        request.latent_shape,
        TEXT_TOKENS,
        max(1, round(request.steps * request.strength)),
        request.guidance,
        request.cache,
        load_loras(request.loras, model.config) if request.loras else (),
    )
    sample = plan_stage(
        "sample",
        weights,
        _sample_ways(request, work, machine.gpu_free),
        machine.gpu_free,
        machine.ram_free,
        swap,
    )
    stages = (
        _plan_text(files, precision, machine),
        sample,
        _plan_decode(request, files, precision, machine, device),
    )
    passes = 2 if request.guidance.uses_cfg else 1
    num_blocks = len(weights.blocks)
    flops = block_flops(model.config.hidden_size, model.config.mlp_ratio, work.tokens)
    step = None
    if machine.speed is not None and machine.gpu_free is not None and precision.product is None:  # speed is of 16 bits
        step = step_cost(
            weights, sample.swapped, [passes * flops / machine.speed] * num_blocks, swap.prefetch, machine.link
        )
    return Plan(machine, stages, passes * num_blocks * flops, passes, step)


def _sample_ways(request: GenerateRequest, work: SampleWork, free: int | None) -> Iterator[Way]:
    """As asked, then with less memory and more time; the blocks as lean as a run makes them."""
    is_batched = request.guidance.uses_cfg and request.guidance.batched
    for batched in (True, False) if is_batched else (request.guidance.batched,):
        lean, num_bytes = replace(work, guidance=replace(request.guidance, batched=batched)).fitted(free)
        labels = ["CFG in turn (--cfg-in-turn)"] if is_batched and not batched else []
        if lean != LeanConfig():
            labels.append(f"{describe_lean(lean)}, which happens by itself")
        yield Way(", ".join(labels), num_bytes)


def _plan_text(files: PlannedFiles, precision: Precision, machine: Machine) -> StagePlan:
    llm, clip = (sketch_text(role, getattr(files, role), precision) for role in ("llm", "clip"))
    tokens = TEXT_TOKENS + TEMPLATE_TOKENS
    work = text_bytes(llm.hidden_size, llm.inner_size, tokens, llm.item_size, llm.is_cast)
    weights = Weights(llm.weights.fixed + clip.weights.num_bytes, llm.weights.blocks)
    return plan_stage("text", weights, [Way("", work)], machine.gpu_free, machine.ram_free, BlockSwap())


def _plan_decode(
    request: GenerateRequest, files: PlannedFiles, precision: Precision, machine: Machine, device: torch.device
) -> StagePlan:
    vae = sketch_vae(files.vae, precision, device)
    weights = Weights(sum(parameter.nbytes for parameter in vae.parameters()))
    work = VAEWork.of(vae, request.frames, request.height, request.width, device)
    free = machine.gpu_free
    if free is None and machine.ram_free is not None:
        free = machine.ram_free - PROCESS_BYTES
    room = None if free is None else max(0, free - weights.num_bytes)

    def ways() -> Iterator[Way]:
        asked = request.tiles
        if isinstance(asked, str):
            tiles = work.choose(asked, room)
            yield way(tiles, "which happens by itself" if tiles else "")
            return
        yield way(asked, "")
        tiles = work.choose(FIT, room)
        if tiles and work.num_bytes(tiles) < work.num_bytes(asked):
            yield way(tiles, f"--tiles {tiles.size} --tile-frames {tiles.frames}")

    def way(tiles: Tiles | None, how: str) -> Way:
        return Way(f"tiles {describe_tiles(tiles)}, {how}" if how else "", work.num_bytes(tiles))

    return plan_stage("decode", weights, ways(), machine.gpu_free, machine.ram_free, BlockSwap())


def _stage_dict(stage: StagePlan) -> dict[str, Any]:
    return {
        "fits": stage.fits,
        "gpu_peak_bytes": stage.device_bytes,
        "ram_peak_bytes": stage.ram_bytes,
        "ram_short_bytes": stage.ram_short,
        "weights_bytes": stage.weights.num_bytes,
        "resident_bytes": stage.resident,
        "working_bytes": stage.way.work,
        "swapped_blocks": len(stage.swapped),
        "setting": stage.way.label or None,
    }


def describe_plan(plan: Plan) -> str:
    """The plan for people."""
    lines = []
    for stage in plan.stages:
        where = "RAM" if stage.device_bytes is None else "GPU"
        peak = stage.ram_bytes if stage.device_bytes is None else stage.device_bytes
        lines.append(
            f"{stage.name:7}{where} peak {gib(peak):>10}  ({gib(stage.resident)} weights, {gib(stage.way.work)} "
            f"work), RAM {gib(stage.ram_bytes)}: {'fits' if stage.fits else 'does not fit'}"
        )
        lines += [f"       with {fact}" for fact in _facts(stage)]
    tera = plan.step_flops / 1e12
    lines.append(f"One step is {tera:,.1f} TFLOP (computed).")
    if plan.step is not None and plan.machine.speed is not None:
        lines.append(
            f"At least {plan.step.seconds:.1f} s a step, computed from the {plan.machine.speed / 1e12:g} TFLOP/s that "
            f"the maker states for {plan.machine.name} and a link of {plan.machine.link / 1e9:g} GB/s, on which "
            f"{plan.step.moved / 1e9:.1f} GB move per step; computing waits {plan.step.stalled:.1f} s for them."
        )
    elif plan.step is None and plan.machine.speed is not None and plan.machine.gpu_free is not None:
        lines.append("No time is computed for products in 8 bits: the speed that is known is that of 16 bits.")
    if not plan.fits:
        lines.append(advice(plan.stages))
    return "\n".join(lines)


def advice(stages: Sequence[StagePlan]) -> str:
    """What is left where settings do not help."""
    names = ", ".join(stage.name for stage in stages if not stage.fits)
    return (
        f"Does not fit as it is: {names}. Make the video smaller or shorter (--width, --height, --frames), or keep the "
        "transformer's weights in 8 bits (--storage-dtype float8_e4m3fn)."
    )


def _facts(stage: StagePlan) -> list[str]:
    facts = [stage.way.label] if stage.way.label else []
    if stage.swapped and stage.name == "sample":
        double = sum(i < stage.weights.num_double for i in stage.swapped)
        facts.append(
            f"{len(stage.swapped)} of {len(stage.weights.blocks)} blocks in RAM, which happens by itself "
            f"(--swap-double {double} --swap-single {len(stage.swapped) - double} says the same)"
        )
    elif stage.swapped:
        facts.append(f"{len(stage.swapped)} of {len(stage.weights.blocks)} layers in RAM, which happens by itself")
    if stage.ram_short:
        facts.append(
            f"{gib(stage.ram_short)} more RAM than is free: files are read from the disk again and again, which is "
            "slow. Files in 8 bits take half"
        )
    return facts

"""A plan in words: the machine, every stage against what the machine has, and what one step costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from ..memory.machine import Machine, gib
from ..memory.plan import RamUse, StagePlan
from .plan import Plan
from .plan_terms import BY_ITSELF, COMMAND_LINE, Terms

INDENT = " " * 7
RAM_PARTS = {
    "files": "of files",
    "converted": "of converted weights",
    "buffers": "of pinned blocks",
    "work": "work",
    "waiting": "waiting for the GPU",
    "process": "the program itself",
}
"""Of a RamUse, in words."""


def describe_plan(plan: Plan, terms: Terms = COMMAND_LINE) -> str:
    """The plan for people. terms: what settings are called where it is shown."""
    return "\n".join([_machine(plan.machine), *_stages(plan, terms), *_step(plan, terms)])


def _machine(machine: Machine) -> str:
    ram = "RAM not given, not checked" if machine.ram_free is None else f"{gib(machine.ram_free)} of RAM free"
    if machine.gpu_free is None:
        return f"Machine: computes in RAM; {ram}."
    if machine.gpu_total is None:
        return f"Machine: {gib(machine.gpu_free)} of the GPU's memory left for the run; {ram}."
    taken = machine.gpu_total - machine.gpu_free
    return (
        f"Machine: {gib(machine.gpu_total)} of GPU memory, {gib(taken)} of it the driver's and other programs', "
        f"{gib(machine.gpu_free)} left for the run; {ram}."
    )


def _stages(plan: Plan, terms: Terms) -> Iterator[str]:
    for stage in plan.stages:
        if stage.device_bytes is None:
            peak = f"RAM peak {gib(stage.ram_bytes):>10}  ({_ram_parts(stage.ram)})"
        else:
            peak = (
                f"GPU peak {gib(stage.device_bytes):>10}  ({gib(stage.resident)} weights, {gib(stage.way.work)} work), "
                f"RAM {gib(stage.ram_bytes)}"
            )
        yield f"{stage.name:7}{peak}: {_verdict(stage) if plan.machine.is_known else 'not checked'}"
        yield from (f"{INDENT}{fact}" for fact in _facts(stage, terms))


def _verdict(stage: StagePlan) -> str:
    """ "fits", "fits with: tiles 128 x 128 x 144, --tiles fit"."""
    if not stage.fits:
        return "does not fit"
    slowly = ", slowly" if stage.is_slow else ""
    return f"fits{slowly}" if stage.way.is_asked else f"fits{slowly} with: {stage.way.label}"


def _ram_parts(ram: RamUse) -> str:
    return ", ".join(f"{gib(getattr(ram, name))} {words}" for name, words in RAM_PARTS.items() if getattr(ram, name))


def _facts(stage: StagePlan, terms: Terms) -> Iterator[str]:
    if stage.device_bytes is not None:
        yield f"RAM: {_ram_parts(stage.ram)}"
    if stage.way.label and not stage.fits:
        yield f"even with {stage.way.label.removesuffix(f', {BY_ITSELF}')}"
    elif stage.way.label and stage.way.is_asked:
        yield f"with {stage.way.label}"
    if stage.swapped:
        yield _swapped(stage, terms)
    if stage.device_short:
        need = stage.resident + stage.way.work + stage.reserve
        yield (
            f"short by {gib(stage.device_short)} on the GPU: it needs {gib(need)}, the {gib(stage.reserve)} that are "
            "kept free included"
        )
    if stage.held_short:
        yield f"short by {gib(stage.held_short)} of RAM that must be there: it needs {gib(stage.ram.held)} beside files"
    if stage.is_slow:
        yield (
            f"short by {gib(stage.files_short)} of RAM for the {gib(stage.ram.again)} of files that are read in every "
            "step: they come from the disk then, which is slow"
        )
    yield from stage.advice


def _swapped(stage: StagePlan, terms: Terms) -> str:
    is_sample = stage.name == "sample"
    what = f"with {len(stage.swapped)} of {len(stage.weights.blocks)} {'blocks' if is_sample else 'layers'} in RAM"
    if not stage.fits:
        return f"even {what}"
    if not is_sample:
        return f"{what}, {BY_ITSELF}"
    double = sum(i < stage.weights.num_double for i in stage.swapped)
    same = terms.swap.format(double=double, single=len(stage.swapped) - double)
    return f"{what}, {BY_ITSELF} (the same as {same})"


def _step(plan: Plan, terms: Terms) -> Iterator[str]:
    machine, cost = plan.machine, plan.cost
    step = "computed step" if cost.is_cached else "step"
    yield f"One {step} is {_spread(cost.flops, 1e12, ',.1f', 'TFLOP')} (computed)."
    if machine.gpu_free is None:
        return
    yield (
        f"In a {step} {_spread(cost.moved, 1e9, '.1f', 'GB')} move to the GPU, which takes "
        f"{_spread(cost.moved, machine.link, '.2f', 's')} on a link of {machine.link / 1e9:g} GB/s, beside computing "
        "where blocks are fetched ahead."
    )
    if machine.speed is None:
        yield f"No time of a step is computed, as the speed is not known: name the card for one ({terms.card})."
    elif cost.quickest is None:
        yield "No time is computed for products in 8 bits: the speed that is known is that of 16 bits."
    else:
        mean = fmean(cost.seconds)
        average = f", {mean:.1f} s on average" if mean > cost.quickest.seconds else ""
        yield (
            f"At least {cost.quickest.seconds:.1f} s a {step}{average}, computed from {machine.speed / 1e12:g} "
            f"TFLOP/s, the peak of {machine.name} by its maker's figures; {cost.quickest.stalled:.1f} s of them wait "
            "for what moves."
        )


def _spread(values: Sequence[float], unit: float, form: str, name: str) -> str:
    """ "3.0 TFLOP", or "2.5 TFLOP on average over the run and 3.0 at most"."""
    mean, most = fmean(values) / unit, max(values) / unit
    if min(values) == max(values):
        return f"{most:{form}} {name}"
    return f"{mean:{form}} {name} on average over all steps and {most:{form}} at most"

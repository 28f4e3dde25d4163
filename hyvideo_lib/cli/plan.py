"""`hyvideo plan`: what a run would take, before it is begun, on this machine or on one that is described."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from . import generate
from .arguments import CARDS, Parser
from .conflicts import check_conflicts
from .options import choose_device, precision_options, swap_options
from .report import Console
from .start import check_start, find_start

if TYPE_CHECKING:
    from ..memory.machine import Machine

SUMMARY = "Tell what a run would take: memory per stage, what fits, and which settings make it fit."


def add_arguments(parser: Parser) -> None:
    generate.add_arguments(parser)
    parser.description = (
        f"{SUMMARY} Takes the options of `hyvideo generate` and reads only the headers of its files; a file not "
        "given counts as the released model's, in 16 bits (but for --storage-dtype). Bytes are counted by running the "
        "models without numbers; times are computed, not measured. Exit code 4 if a stage does not fit."
    )
    group = parser.add_argument_group("machine (default: this one)")
    group.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help="a card's memory in place of this one's: 8GiB for a card that is sold as 8 GB, 7GiB if a desktop and "
        "other programs take 1 GiB of it",
    )
    group.add_argument(
        "--ram",
        metavar="SIZE",
        help="RAM that is free for the run, such as 32GiB; without it, another machine's is not checked",
    )
    group.add_argument("--link", metavar="SPEED", help="RAM to card, such as 25GB/s (default: 25GB/s)")
    group.add_argument("--card", metavar="NAME", help=f"for its memory and speed: {', '.join(CARDS)}")


def run(options: Namespace, console: Console) -> int:
    import torch

    from ..errors import OutOfMemory
    from ..pipeline import check_files
    from ..pipeline.files import PlannedFiles
    from ..pipeline.plan import plan_run
    from ..pipeline.plan_text import describe_plan

    check_conflicts(options)
    start = find_start(options)
    request = replace(generate.request_from(options, start), prompt="-")
    request.check()
    is_described = options.gpu_memory is not None or options.card is not None
    device = "cuda" if is_described else choose_device(options.device)
    machine = _machine(options, device, is_described)
    files = PlannedFiles(options.transformer, options.vae, options.llm, options.clip)
    precision, swap, reports = precision_options(options), swap_options(options), check_files(files)
    check_start(start, request, reports)
    if "transformer" in reports and not is_described:
        precision.check_device(device, reports["transformer"])
    plan = plan_run(request, files, precision, machine, torch.device(device), swap, start.kind)
    if start.video:
        console.note(start.video.sentences())
    console.say(describe_plan(plan))
    console.result(plan.to_dict() | ({"input": start.video.to_dict()} if start.video else {}))
    return 0 if plan.fits else OutOfMemory.exit_code


def _machine(options: Namespace, device: str, is_described: bool) -> Machine:
    """This machine, or what the options say of another."""
    import torch

    from ..memory import free_device_bytes
    from ..memory.machine import DEFAULT_LINK, Machine, device_bytes, find_card, parse_amount
    from ..memory.plan import CONTEXT_BYTES
    from ..memory.ram import free_ram_bytes

    card = find_card(options.card) if options.card else None
    gpu = parse_amount(options.gpu_memory, "gpu memory") if options.gpu_memory else card and card.memory
    return Machine(
        gpu_free=max(0, int(gpu) - CONTEXT_BYTES) if gpu else free_device_bytes(torch.device(device)),
        gpu_total=int(gpu) if gpu else device_bytes(torch.device(device)),
        ram_free=int(parse_amount(options.ram, "ram")) if options.ram else None if is_described else free_ram_bytes(),
        link=parse_amount(options.link, "link", "25GB/s") if options.link else DEFAULT_LINK,
        speed=card.speed if card else None,
        name=options.card or "",
    )

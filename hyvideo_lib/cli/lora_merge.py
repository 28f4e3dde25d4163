"""`hyvideo lora-merge`: a transformer's file with a LoRA added into its weights."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..errors import InvalidSetting
from .arguments import Parser, number
from .interrupt import stop_on_signals
from .outputs import check_apart, check_suffix
from .progress import Progress
from .report import Console

SUMMARY = "Write a copy of a transformer with a LoRA added into its weights."


def add_arguments(parser: Parser) -> None:
    parser.description = (
        f"{SUMMARY} Names and layout stay as they are. Weights that the LoRA changes are stored in 16 bits where they "
        "had fewer, as rounding to 8 bits loses a large part of what it adds, and the file grows. What rounding costs "
        "is told. `generate --lora` leaves the weights alone and loses nothing."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the transformer: a file, or a folder of shards")
    parser.add_argument("lora", type=Path, metavar="LORA", help="the LoRA: a safetensors file, or a folder of PEFT's")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new .safetensors file")
    parser.add_argument(
        "--strength",
        type=number(float, "strength", InvalidSetting),
        default=1.0,
        metavar="X",
        help="-10 to 10, but not 0 (default: 1)",
    )
    parser.add_argument("--blocks", default="", metavar="WHICH", help="like 'double 0-9, single' (default: all)")
    parser.add_argument(
        "--storage",
        choices=("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"),
        help="what the changed weights are stored in, those of 16 and 32 bits never in fp8 (default: as they were, but "
        "bfloat16 for 8 bits and fewer)",
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def run(options: Namespace, console: Console) -> int:
    from ..host import HeadlessHost
    from ..lora import find_lora, parse_blocks
    from ..lora.merge import merge_lora

    check_apart(check_suffix(options.out, ".safetensors", "OUT"), options.model, find_lora(options.lora))
    progress = Progress(console)
    host = HeadlessHost("cpu", on_stage=progress.stage, on_step=progress.step)
    blocks = parse_blocks(options.blocks)
    try:
        with stop_on_signals(host.cancel):
            merged = merge_lora(
                options.model,
                options.lora,
                options.out,
                options.strength,
                blocks,
                options.force,
                host,
                options.storage,
            )
    finally:
        progress.close()
    warning = merged.coverage.warning()
    console.note(f"LoRA {merged.coverage.describe()}")
    if warning:
        console.note(f"Warning: {warning}")
    console.say(
        f"{merged.path}: {merged.changed} of {merged.tensors} tensors changed, stored as {', '.join(merged.stored)}; "
        f"rounding changes what the LoRA adds by {merged.rounding:.2%}"
    )
    warnings = [{"code": "lora_unmatched", "message": warning}] if warning else []
    console.result({**merged.to_dict(), "warnings": warnings})
    return 0

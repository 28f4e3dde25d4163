"""`hyvideo convert`: any known file, or a pickle, to a safetensors file of a chosen layout and storage."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .arguments import STORAGE_DTYPES, Parser
from .interrupt import stop_on_signals
from .outputs import check_apart, check_suffix
from .progress import Progress
from .report import Console

SUMMARY = "Write a model file, or a pickle (.pt, .ckpt, .bin), as safetensors."
LAYOUTS = ("tencent", "comfyui", "diffusers")
COMPONENTS = ("auto", "transformer", "vae", "llm", "clip", "any")


def add_arguments(parser: Parser) -> None:
    parser.description = (
        f"{SUMMARY} Tensors are written one by one, so that it needs the memory of one. Pickles are opened in a "
        "process of their own, where they can make tensors and nothing else. The scale map of Tencent's fp8 "
        "file goes into the new file if it lies beside the old one."
    )
    parser.add_argument("source", type=Path, metavar="IN", help="a file, or a folder or an index of parts")
    parser.add_argument("target", type=Path, metavar="OUT", help="the new file, which ends in .safetensors")
    parser.add_argument("--layout", metavar="NAME", help=f"{', '.join(LAYOUTS)} (default: as in the file)")
    parser.add_argument(
        "--storage",
        metavar="NAME",
        help=f"{', '.join(STORAGE_DTYPES)}, for the large weights (default: as in the file)",
    )
    parser.add_argument(
        "--component",
        default="auto",
        metavar="NAME",
        help=f"which model of the file: {', '.join(COMPONENTS)}; any keeps everything as it is (default: auto)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(options: Namespace, console: Console) -> int:
    """Convert; what changed goes into a manifest beside the new file, or into the report with --json."""
    from ..atomic import check_output, whole_file
    from ..checkpoint.convert import convert_file
    from ..checkpoint.rewrite import Request
    from ..host import HeadlessHost

    request = Request(options.layout, options.storage, options.component)
    check_apart(check_suffix(options.target, ".safetensors", "OUT"), options.source)
    manifest_path = manifest_beside(options.target)
    if not console.as_json:
        check_output(manifest_path, options.force)
    progress = Progress(console)
    host = HeadlessHost(on_stage=progress.stage, on_step=progress.step)
    try:
        with stop_on_signals(host.cancel):
            manifest = convert_file(options.source, options.target, request, options.force, host)
    finally:
        progress.close()
    if not console.as_json:
        with whole_file(manifest_path, options.force) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    console.say(_text(options.target, manifest_path, manifest))
    console.result({"path": str(options.target), "manifest": manifest})
    return 0


def manifest_beside(target: Path) -> Path:
    """Where it is written what changed."""
    return target.with_name(f"{target.stem}.manifest.json")


def _text(target: Path, manifest_path: Path, manifest: Mapping[str, Any]) -> str:
    old = manifest["from"]
    size = manifest["num_bytes"] / 1e9
    what = " ".join(filter(None, (old["layout"], old["kind"])))
    lines = [
        f"{target}: {manifest['num_tensors']} tensors, {size:.3f} GB, from {old['file']} ({what})",
        f"  {manifest['num_changed']} of them changed; which and how is in {manifest_path.name}",
    ]
    if manifest["notes"]:
        lines += [f"  {note}" for note in manifest["notes"]]
    if manifest.get("ignored"):
        lines.append(
            f"  no weights, ignored: {', '.join(manifest['ignored'][:10])} ({len(manifest['ignored'])} in all)"
        )
    if manifest["dropped"]:
        lines.append(f"  left out: {', '.join(manifest['dropped'][:10])} ({len(manifest['dropped'])} in all)")
    return "\n".join(lines)

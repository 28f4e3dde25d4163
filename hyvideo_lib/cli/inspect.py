"""`hyvideo inspect`: what a file is, from its header; and what a video was made with."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileUnreadable, HyvError
from .arguments import Parser
from .report import Console, describe

if TYPE_CHECKING:
    from ..checkpoint import FileReport

SUMMARY = "Tell what model files are, from their headers, and how videos were made."


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a .safetensors or .gguf file, a folder of shards or of PEFT's, or an .mp4 of ours",
    )


def run(options: Namespace, console: Console) -> int:
    """Report on each file. One that cannot be read does not stop the others; its exit code is given at the end."""
    entries: list[dict[str, Any]] = []
    failure: HyvError | None = None
    for path in options.files:
        try:
            entry, text = _inspect(path)
            console.say(text)
        except HyvError as error:
            failure = failure or error
            entry = {"path": str(path), "error": describe(error)}
            if not console.as_json:
                console.note(f"Error: {error}")
        entries.append(entry)
    if failure:
        return console.fail(failure, {"files": entries}, is_told=True)
    console.result({"files": entries})
    return 0


def _inspect(path: Path) -> tuple[dict[str, Any], str]:
    """A report for machines and one for people."""
    from ..checkpoint import inspect_file
    from ..lora.alpha_report import peft_file, with_alpha
    from ..video import is_mp4, read_settings

    if not path.is_dir() and is_mp4(path):
        settings = read_settings(path)
        size = path.stat().st_size
        return {"path": str(path), "file_size": size, "kind": "video", "settings": settings}, _video_text(
            path, settings
        )
    if path.suffix.lower() == ".mp4":
        raise FileUnreadable(f"{path.name} is called an mp4 but does not begin as one. Copy or make it again.")
    file = peft_file(path)
    report = inspect_file(file)
    if file != path:
        report = replace(report, notes=(f"In a folder of PEFT's or diffusers' ({path.name}).", *report.notes))
    report, places = with_alpha(report, file)
    alpha = {"alpha_sources": list(places)} if report.kind == "lora" else {}
    return {**report.to_dict(), **alpha}, _model_text(report)


def _video_text(path: Path, settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return f"{path}\n  a video that holds no settings of hyvideo"
    return f"{path}\n  a video made by hyvideo\n{_table(settings)}"


def _model_text(report: FileReport) -> str:
    from ..checkpoint.variants import KIND_NAMES

    verdict = "can be used" if report.supported else f"cannot be used: {report.reason}"
    facts = {
        "layout": report.layout,
        "variant": report.variant,
        "prefix of names": report.prefix,
        "quantisation": report.quantization,
        "size": f"{report.file_size / 1e9:.3f} GB, {report.num_parameters / 1e6:,.1f} M parameters in "
        f"{report.num_tensors} tensors",
    }
    complaints = {"missing": report.missing, "unexpected": report.unexpected, "wrong shape": report.wrong_shapes}
    lines = [str(report.path), f"  {KIND_NAMES.get(report.kind, report.kind)}; {verdict}"]
    lines += [_table({name: value for name, value in facts.items() if value})]
    lines += [f"  {note}" for note in report.notes]
    if report.config:
        lines += ["  sizes", _table(report.config, indent=4)]
    lines += [f"  {fault}: {', '.join(names)}" for fault, names in complaints.items() if names]
    lines += ["  parts", *_parts(report)]
    return "\n".join(lines)


def _parts(report: FileReport) -> list[str]:
    """A line for each group of tensors; a part whose tensors are stored in several ways has several."""
    width = max((len(group.name) for group in report.groups), default=0)
    return [
        f"    {group.name:{width}}  {group.tensors} tensors, {group.parameters / 1e6:,.3f} M parameters, {group.dtype}"
        + ("" if group.scheme == "none" else f" ({group.scheme})")
        for group in report.groups
    ]


def _table(values: Mapping[str, Any], indent: int = 2) -> str:
    """Names and values in two columns; tables within are indented."""
    width = max(map(len, values), default=0)
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{'':{indent}}{name}", _table(value, indent + 2)]
        else:
            lines.append(f"{'':{indent}}{name:{width}}  {value}")
    return "\n".join(lines)

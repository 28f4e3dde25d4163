"""Information: what a model or a file is, on the node and as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..hyvideo_lib.demo import assets
from . import comfy_host
from .files import ALL_KINDS, list_choices, resolve
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_EMBEDS, HYV_MODEL, HYV_TEXT, HYV_VAE, TextHandle, TransformerHandle, VAEHandle

if TYPE_CHECKING:
    from ..hyvideo_lib.checkpoint import FileReport

NO_FILE = "(none)"


class ModelInfo(io.ComfyNode):
    """HyvModelInfo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvModelInfo",
            display_name="HunyuanVideo Model Info",
            category=f"{CATEGORY}/load",
            description="Says what a model or a file is and whether it can be used. Reads only a file's header.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *list_choices(*ALL_KINDS)],
                    default=NO_FILE,
                    tooltip="A file to look at, of any kind; nothing is loaded.",
                ),
                io.MultiType.Input(
                    "handle",
                    types=[HYV_MODEL, HYV_TEXT, HYV_VAE, HYV_EMBEDS],
                    optional=True,
                    tooltip="Any model or embeds of this pack, to see what it is and where it lies.",
                ),
            ],
            outputs=[io.String.Output("report", display_name="report", tooltip="The same text.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file: str = NO_FILE) -> bool | str:
        return check_inputs(cls, {"file": file})

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        """Never equal to itself: a file may have changed, a model moved, and looking costs nothing."""
        return float("nan")

    @classmethod
    @names_its_errors
    def execute(cls, file: str = NO_FILE, handle: Any = None) -> io.NodeOutput:
        parts = [] if file == NO_FILE else [describe_file(file)]
        if handle is not None:
            parts.append(describe_handle(handle))
        report = "\n\n".join(parts) or "Choose a file, or connect a model."
        comfy_host.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(report, ui={"text": (report,)})


def describe_file(name: str) -> str:
    """The recogniser's report on a listed file, for people. Raises what it raises, and FileMissing."""
    from ..hyvideo_lib.checkpoint import inspect_file
    from ..hyvideo_lib.lora.alpha_report import with_alpha

    path = resolve(name, assets.TRANSFORMER, *ALL_KINDS)
    return describe_report(with_alpha(inspect_file(path), path)[0])


def describe_report(report: FileReport) -> str:
    """A report in a few lines."""
    from ..hyvideo_lib.checkpoint.variants import KIND_NAMES

    lines = [
        f"{Path(report.path).name}: {KIND_NAMES.get(report.kind, 'unknown')}",
        f"{report.num_parameters / 1e6:,.1f} M parameters in {report.num_tensors} tensors, "
        f"{report.file_size / 2**30:.2f} GiB",
        f"quantisation: {report.quantization}" + (f", variant: {report.variant}" if report.variant else ""),
        "can be used" if report.supported else f"cannot be used: {report.reason}",
        *report.notes,
    ]
    if report.config:
        lines.append(", ".join(f"{key} {value}" for key, value in report.config.items()))
    return "\n".join(lines)


def describe_handle(handle: Any) -> str:
    """A handle in a few lines: what it is, and how much of it is on which device."""
    if isinstance(handle, TransformerHandle):
        loras = [use.lora.coverage.describe() for use in handle.loras]
        return "\n".join([repr(handle), describe_report(handle.report), *loras, _place(handle.managed)])
    if isinstance(handle, TextHandle):
        return "\n".join([repr(handle), *map(describe_report, handle.reports), *map(_place, handle.managed)])
    if isinstance(handle, VAEHandle):
        return "\n".join([repr(handle), describe_report(handle.report), _place(handle.managed)])
    return repr(handle)


def _place(managed: Any) -> str:
    size, loaded = managed.model_size() / 2**20, managed.loaded_size() / 2**20
    return f"{loaded:,.1f} of {size:,.1f} MiB on {managed.load_device}"


NODES = (ModelInfo,)

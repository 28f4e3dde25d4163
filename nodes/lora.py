"""LoRAs: added to a transformer's handle; they act in the sampler."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..hyvideo_lib.demo import assets
from ..hyvideo_lib.errors import FileMissing
from ..hyvideo_lib.lora import MAX_STRENGTH
from . import comfy_host
from .files import DEMO, fingerprint
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_MODEL, TransformerHandle

if TYPE_CHECKING:
    from ..hyvideo_lib.lora import Lora
    from ..hyvideo_lib.transformer import TransformerConfig

KINDS = ("loras",)
DEMO_FILES = {DEMO: assets.LORAS["kohya"], f"{DEMO} (diffusers names)": assets.LORAS["diffusers"]}
"""The demo's LoRA in two families of files."""


def resolve(name: str) -> Path:
    """The file behind a choice. Raises FileMissing."""
    path = DEMO_FILES.get(name) or comfy_host.find_file(name, *KINDS)
    if path is None:
        raise FileMissing(
            f"{name} is in none of ComfyUI's folders for loras. Put the file there and press R to refresh the lists, "
            "or choose another one."
        )
    return path


def list_choices() -> list[str]:
    """The files in the folder for LoRAs, and the demo's. GGUF is none of the forms that LoRAs come in."""
    return [*(name for name in comfy_host.list_files(*KINDS) if not name.lower().endswith(".gguf")), *DEMO_FILES]


def check_choice(name: str, blocks: str) -> None:
    """What can be told before the model is there. Raises FileMissing, and what `check_names` raises."""
    from ..hyvideo_lib.lora import check_names, parse_blocks

    parse_blocks(blocks)
    check_names(resolve(name))


def read(path: Path, config: TransformerConfig) -> Lora:
    """The LoRA in a file. It is read again only when that or a configuration beside it has changed: another strength is
    not worth seconds."""
    return _read(path, file_stamp(path), config)


def file_stamp(path: Path) -> tuple[int, ...]:
    """Changes with a file, and with a configuration beside it, which may say its alpha."""
    from ..hyvideo_lib.lora.alpha_sources import CONFIGS

    stats = [path.stat(), *(config.stat() for name in CONFIGS if (config := path.parent / name).is_file())]
    return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4)
def _read(path: Path, stamp: tuple[int, ...], config: TransformerConfig) -> Lora:
    from ..hyvideo_lib.lora import read_lora

    return read_lora(path, config)


def _beside(name: str) -> str:
    try:
        return f"{file_stamp(resolve(name))[2:]};" if isinstance(name, str) else ""
    except (FileMissing, OSError):
        return ""


class LoadLora(io.ComfyNode):
    """HyvLoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvLoRA",
            display_name="HunyuanVideo LoRA",
            category=f"{CATEGORY}/options",
            description="Adds a LoRA to the transformer. Several in a row act together. The weights are left as they "
            "are.",
            inputs=[
                HYV_MODEL.Input("model", tooltip="From Load Transformer, or from another LoRA."),
                io.Combo.Input(
                    "file",
                    options=list_choices(),
                    default=DEMO,
                    tooltip="A file in models/loras, of any trainer. hyvideo-demo teaches the demo model the word "
                    "large.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-MAX_STRENGTH,
                    max=MAX_STRENGTH,
                    step=0.01,
                    tooltip="How strongly it acts. 1 is as trained, 0 is off, below 0 turns the effect round. Changing "
                    "it loads nothing anew.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    tooltip="Where it acts. Empty is everywhere; double, single and other choose kinds of layers, "
                    "with numbers some of their blocks: double 0-9, single.",
                ),
            ],
            outputs=[
                HYV_MODEL.Output("with_lora", display_name="model", tooltip="The same transformer, with the LoRA."),
                io.String.Output("report", display_name="report", tooltip="What of the file acts, and on what."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file: str = DEMO, strength: float = 1.0, blocks: str = "") -> bool | str:
        values = {"file": file, "strength": strength, "blocks": blocks}
        return check_inputs(cls, values, lambda: check_choice(file, blocks))

    @classmethod
    def fingerprint_inputs(cls, file: str = DEMO, **_: object) -> str:
        """Changes with the file, so that a LoRA trained anew under its old name is read again."""
        return fingerprint(file, DEMO_FILES.get(file, assets.LORAS["kohya"]), *KINDS) + _beside(file)

    @classmethod
    @names_its_errors
    def execute(
        cls, model: TransformerHandle, file: str = DEMO, strength: float = 1.0, blocks: str = ""
    ) -> io.NodeOutput:
        from ..hyvideo_lib.lora import LoraUse, parse_blocks

        lora = read(resolve(file), model.model.config)
        use = LoraUse(lora, strength, parse_blocks(blocks))
        report = "\n".join((use.describe(), *use.warnings().values()))
        comfy_host.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(replace(model, loras=(*model.loras, use)), report)


NODES = (LoadLora,)

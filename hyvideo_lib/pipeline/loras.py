"""The LoRAs of a request: which files, how strongly, on which blocks; and read for a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import FileReport
from ..lora import LoraUse, check_strength, parse_blocks, read_lora
from ..transformer import TransformerConfig


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA's file or folder, its strength (-10..10), and the blocks it acts on ("double 0-9, single"; "": all)."""

    path: Path
    strength: float = 1.0
    blocks: str = ""

    def check(self) -> None:
        """Raises InvalidSetting for a strength or a choice of blocks that cannot be; the file is not looked at."""
        check_strength(self.strength)
        parse_blocks(self.blocks)

    def settings(self) -> dict[str, Any]:
        """What stands in a video's file."""
        return {"file": self.path.name or self.path.resolve().name, "strength": self.strength, "blocks": self.blocks}


def load_loras(choices: Sequence[LoraChoice], config: TransformerConfig) -> tuple[LoraUse, ...]:
    """Read LoRAs for a transformer of these sizes, each file once.

    Raises what `read_lora` raises, and InvalidSetting for a block that the transformer does not have.
    """
    read = {path: read_lora(path, config) for path in dict.fromkeys(choice.path for choice in choices)}
    return tuple(LoraUse(read[choice.path], choice.strength, parse_blocks(choice.blocks)) for choice in choices)


def check_loras(choices: Sequence[LoraChoice], transformer: FileReport) -> tuple[LoraUse, ...]:
    """`load_loras` for the transformer of a report, before anything of it is loaded."""
    return load_loras(choices, TransformerConfig(**(transformer.config or {}))) if choices else ()

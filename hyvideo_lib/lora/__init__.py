"""LoRA: files of every family, their layers found in the model, added while a run goes on and never to its weights."""

from .attach import MAX_STRENGTH, LoraUse, attach, check_strength, lora_bytes
from .blocks import ALL_BLOCKS, BlockChoice, parse_blocks
from .coverage import Coverage
from .read import Lora, check_names, read_lora
from .update import LowRank
from .write import FAMILIES, write_lora

__all__ = [
    "ALL_BLOCKS",
    "FAMILIES",
    "MAX_STRENGTH",
    "BlockChoice",
    "Coverage",
    "Lora",
    "LoraUse",
    "LowRank",
    "attach",
    "check_names",
    "check_strength",
    "lora_bytes",
    "parse_blocks",
    "read_lora",
    "write_lora",
]

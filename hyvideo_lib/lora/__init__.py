"""LoRA: files of every family, their layers found in the model, added while a run goes on and never to its weights."""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .attaching import LoraUse, attach, lora_bytes, lora_costs
    from .blocks import ALL_BLOCKS, BlockChoice, parse_blocks
    from .cost import Cost
    from .coverage import Coverage
    from .files import find_lora
    from .read import Lora, check_names, read_lora
    from .strength import MAX_STRENGTH, check_strength
    from .update import LowRank
    from .write import FAMILIES, write_lora
else:
    __getattr__ = names_from(
        __name__,
        {
            "attaching": "LoraUse attach lora_bytes lora_costs",
            "blocks": "ALL_BLOCKS BlockChoice parse_blocks",
            "cost": "Cost",
            "coverage": "Coverage",
            "files": "find_lora",
            "read": "Lora check_names read_lora",
            "strength": "MAX_STRENGTH check_strength",
            "update": "LowRank",
            "write": "FAMILIES write_lora",
        },
    )

__all__ = [
    "ALL_BLOCKS",
    "FAMILIES",
    "MAX_STRENGTH",
    "BlockChoice",
    "Cost",
    "Coverage",
    "Lora",
    "LoraUse",
    "LowRank",
    "attach",
    "check_names",
    "check_strength",
    "find_lora",
    "lora_bytes",
    "lora_costs",
    "parse_blocks",
    "read_lora",
    "write_lora",
]

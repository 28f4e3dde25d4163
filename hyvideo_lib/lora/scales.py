"""How much of its product a LoRA adds: alpha over rank, where the file tells alpha.

A tensor `....alpha` beside the matrices tells it for a module, else a PEFT configuration in the file's metadata;
without either the scale is 1. An alpha of 0 stands for alpha = rank, as trainers have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PEFT_METADATA = "lora_adapter_metadata"
_MAX_PATTERNS = 10_000


def scale_from_alpha(alpha: float | None, rank: int) -> float:
    """What the product is multiplied by. Raises ValueError for an alpha that is NaN or infinite."""
    if alpha is None or alpha == 0:
        return 1.0
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}")
    return alpha / rank


@dataclass(frozen=True)
class PeftScales:
    """What a PEFT configuration says: one alpha for all, others for modules whose names end so."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    is_root: bool = False

    def scale(self, module: str, rank: int) -> float:
        """The scale of a module, by its name in the file, with any prefix."""
        alpha = self.alpha
        for pattern, own in self.patterns.items():
            if module == pattern or module.endswith(f".{pattern}"):
                alpha = own
        if alpha and self.is_root:  # rsLoRA divides by the root of the rank
            alpha = alpha * math.sqrt(rank)
        return scale_from_alpha(alpha, rank)


def peft_scales(metadata: Mapping[str, str]) -> PeftScales:
    """From a file's metadata; what is not as PEFT writes it counts as not there."""
    try:
        entries = json.loads(metadata.get(PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        return PeftScales()
    if not isinstance(entries, dict):
        return PeftScales()
    values = {str(key).removeprefix("transformer."): value for key, value in entries.items()}
    patterns = values.get("alpha_pattern")
    patterns = patterns if isinstance(patterns, dict) and len(patterns) <= _MAX_PATTERNS else {}
    return PeftScales(
        values["lora_alpha"] if _is_number(values.get("lora_alpha")) else None,
        {name.removeprefix("^").removesuffix("$"): float(own) for name, own in patterns.items() if _is_number(own)},
        values.get("use_rslora") is True,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

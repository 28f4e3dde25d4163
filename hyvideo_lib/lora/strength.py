"""How strongly a LoRA may act."""

from __future__ import annotations

import math

from ..errors import InvalidSetting

MAX_STRENGTH = 10.0


def check_strength(strength: float) -> float:
    """The strength itself. Raises InvalidSetting outside -10..10."""
    if not math.isfinite(strength) or abs(strength) > MAX_STRENGTH:
        raise InvalidSetting(
            f"The LoRA's strength is {strength:g}, but must be from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}. 1 is as "
            "trained, 0 is off."
        )
    return strength

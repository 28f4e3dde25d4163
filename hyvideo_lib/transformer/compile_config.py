"""How the transformer's blocks are compiled."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting

BACKENDS = ("inductor", "aot_eager", "eager")
"""The first makes kernels; the others trace only, to find out where something fails."""
MODES = ("default", "max-autotune-no-cudagraphs")
"""The second tries more ways for every kernel: minutes at the first step."""


SCOPES = ("blocks", "pieces")
"""What is compiled: all of a block but its attention, or each of the pieces between matrix products and attention."""


@dataclass(frozen=True)
class CompileConfig:
    """What torch.compile is told. Raises InvalidSetting.

    dynamic: one kernel for all numbers of tokens; else one for each. scope: one of SCOPES. Blocks fuse more,
    also the rounding of tokens for products in 8 bits; pieces know nothing of weights and LoRAs.
    """

    backend: str = BACKENDS[0]
    mode: str = MODES[0]
    dynamic: bool = True
    scope: str = SCOPES[0]

    def __post_init__(self) -> None:
        for name, accepted in (("backend", BACKENDS), ("mode", MODES), ("scope", SCOPES)):
            value = getattr(self, name)
            if value not in accepted:
                raise InvalidSetting(f"The compile {name} is {value!r}, but must be one of: {', '.join(accepted)}.")

"""Where weights are while they are not needed, and how they come to the device when they are."""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .block_swap import AUTO, BlockSwap
    from .offload import Offloader, module_bytes
    from .traffic import Traffic
    from .vram import free_device_bytes
else:
    __getattr__ = names_from(
        __name__,
        {
            "block_swap": "AUTO BlockSwap",
            "offload": "Offloader module_bytes",
            "traffic": "Traffic",
            "vram": "free_device_bytes",
        },
    )

__all__ = ["AUTO", "BlockSwap", "Offloader", "Traffic", "free_device_bytes", "module_bytes"]

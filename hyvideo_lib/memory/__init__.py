"""Where weights are while they are not needed, and how they come to the device when they are."""

from .block_swap import AUTO, BlockSwap
from .offload import Offloader, module_bytes
from .traffic import Traffic
from .vram import free_device_bytes

__all__ = ["AUTO", "BlockSwap", "Offloader", "Traffic", "free_device_bytes", "module_bytes"]

"""Where weights are while they are not needed, and how they come to the device when they are."""

from .block_swap import AUTO, BlockSwap
from .offload import Offloader, module_bytes
from .vram import free_device_bytes

__all__ = ["AUTO", "BlockSwap", "Offloader", "free_device_bytes", "module_bytes"]

"""Which device is the current one, on which some calls act wherever their tensors are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make the device the current one in this context and thread.

    Triton's kernels, and so some of other people's attention, run on the current device. PyTorch's streams go back to
    the current device's when they end, and so would wake up a first card that nobody uses.
    """
    api: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    return api.device(device) if hasattr(api, "device") else nullcontext()

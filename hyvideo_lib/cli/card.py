"""The card as a program has it that owns its process, which a library does not."""

from __future__ import annotations

import torch

from ..host import HeadlessHost
from ..memory.vram import stay_on_card


class CardHost(HeadlessHost):
    """The host of a command: its device is the process's current one, and what it has no room for is an error.

    Other people's kernels run on the current device, wherever their tensors are.
    """

    def become_current(self) -> None:
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)

    def request_memory(self, num_bytes: int) -> None:
        stay_on_card(self.device)

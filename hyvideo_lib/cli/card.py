"""The card as a program has it that owns its process, which a library does not."""

from __future__ import annotations

from ..host import HeadlessHost
from ..memory.vram import stay_on_card


class CardHost(HeadlessHost):
    """The host of a command: what its card has no room for is an error."""

    def request_memory(self, num_bytes: int) -> None:
        stay_on_card(self.device)

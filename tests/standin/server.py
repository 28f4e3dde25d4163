"""The server that nodes send their text to. There is none until one is made."""

from __future__ import annotations

from typing import Any


class PromptServer:
    instance: PromptServer

    def __init__(self, loop: Any) -> None:
        PromptServer.instance = self
        self.client_id: str | None = None
        self.texts: list[tuple[str, str, str | None]] = []

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.texts.append((node_id, text, sid))

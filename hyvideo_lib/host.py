"""The one seam to whatever runs the library: progress, previews, interruption, the device and its memory.

Long computations take a `Host` and call it; they reach nothing else outside themselves. The command line and the tests
pass `HeadlessHost`; a node graph passes its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .errors import Interrupted

if TYPE_CHECKING:
    import torch


class Host(Protocol):
    """What a long computation may ask of its surroundings."""

    @property
    def device(self) -> torch.device:
        """Where computing happens."""
        ...

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins; `step` counts within it."""
        ...

    def step(self, done: int, total: int) -> None:
        """`done` of `total` steps of the current stage are complete."""
        ...

    def preview(self, latents: torch.Tensor) -> None:
        """The current estimate of the clean latents [B, C, T, H, W], in the transformer's scale, float32."""
        ...

    def check_interrupt(self) -> None:
        """Raise if the user cancelled. Called between steps and inside loops over blocks, tiles and files."""
        ...

    def request_memory(self, num_bytes: int) -> None:
        """Ask for so many free bytes on the device; other people's models may move out. Never fails."""
        ...


class HeadlessHost:
    """The host of scripts and tests: calls to listen to, and `cancel()` from another thread or a signal handler."""

    def __init__(
        self,
        device: str | torch.device = "cpu",
        on_stage: Callable[[str, int], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_preview: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        self._device = device
        self._on_stage, self._on_step, self._on_preview = on_stage, on_step, on_preview
        self._cancelled = threading.Event()

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device(self._device)

    def stage(self, name: str, total: int) -> None:
        if self._on_stage:
            self._on_stage(name, total)

    def step(self, done: int, total: int) -> None:
        if self._on_step:
            self._on_step(done, total)

    def preview(self, latents: torch.Tensor) -> None:
        if self._on_preview:
            self._on_preview(latents)

    def cancel(self) -> None:
        """Make the next `check_interrupt` raise `Interrupted`; safe from a signal handler."""
        self._cancelled.set()

    def check_interrupt(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted("Stopped on request; nothing half-written was kept.")

    def request_memory(self, num_bytes: int) -> None:
        return None

"""What the demo's training stages share: batches, rates, averaged weights, and checkpoints to go on from."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .world import Scene


def draw_batch(scenes: Sequence[Scene], count: int, generator: torch.Generator) -> list[Scene]:
    """`count` scenes, each drawn at random."""
    return [scenes[int(i)] for i in torch.randint(len(scenes), (count,), generator=generator)]


def cosine_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.01) -> float:
    """Learning rate: linear up to `peak`, then half a cosine down to floor * peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Average:
    """A running mean of a module's weights: steadier than the last step's."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        mine, theirs = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        module.load_state_dict(self.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.module.load_state_dict(state["module"])


class Checkpoint:
    """Named things with a state_dict, saved together with a step number; written whole or not at all."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path = path
        self.parts = parts

    def save(self, step: int) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save({"step": step, **{name: part.state_dict() for name, part in self.parts.items()}}, temporary)
        os.replace(temporary, self.path)

    def load(self) -> int:
        """Restore everything and return the step to go on from; 0 where nothing was saved."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

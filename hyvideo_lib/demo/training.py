"""What the demo's training stages share: batches, rates, averaged weights, and checkpoints to go on from."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .world import Scene


def draw_batch(scenes: Sequence[Scene], count: int, generator: torch.Generator) -> list[Scene]:
    """`count` scenes, each drawn at random."""
    return [scenes[int(i)] for i in torch.randint(len(scenes), (count,), generator=generator)]


def cosine_rate(step: int, steps: int, peak: float = 1.0, warmup: int = 50, floor: float = 0.01) -> float:
    """Learning rate: linear up to `peak`, then half a cosine down to floor * peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class MuonAdam:
    """Muon for weight matrices (a convolution kernel counts as [out, in * k]), AdamW for all other parameters.

    Here it needs a fraction of the steps that AdamW alone needs. rates: peak for the matrices, peak for the rest.
    """

    def __init__(self, model: nn.Module, is_matrix: Callable[[str, nn.Parameter], bool], rates: tuple[float, float]):
        named = list(model.named_parameters())
        self.rates = rates
        self.matrices = [p for name, p in named if is_matrix(name, p)]
        chosen = {id(p) for p in self.matrices}
        self.flat = [nn.Parameter(p.detach().view(p.shape[0], -1)) for p in self.matrices]  # same storage
        self.muon = torch.optim.Muon(self.flat, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        rest = [p for _, p in named if id(p) not in chosen]
        self.adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, share: float) -> None:
        """One update at `share` of the peak rates."""
        for flat, matrix in zip(self.flat, self.matrices, strict=True):
            flat.grad = None if matrix.grad is None else matrix.grad.view_as(flat)
        for optimizer, rate in zip((self.muon, self.adamw), self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


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
        mine: list[torch.Tensor] = list(self.module.parameters())
        theirs: list[torch.Tensor] = list(module.parameters())
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

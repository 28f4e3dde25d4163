"""The run report: what each stage took, in seconds and bytes, and what was decided in it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..memory import Traffic
from ..memory.machine import gib
from ..memory.ram import peak_ram_bytes
from ..memory.vram import device_peak_bytes, reset_device_peak
from ..vae import Tiles


@dataclass(frozen=True)
class StageReport:
    """One stage. None means "not known" for what is measured and "not of this stage" for what is decided.

    device_peak_bytes: the most that PyTorch's allocator had given out on the device during the stage, weights included;
    None on the CPU. ram_peak_bytes: the most RAM that the process had held up to the stage's end. moved_bytes,
    stalled_seconds: see Traffic. attention: the backend. skipped_steps: steps that a cache answered. swapped_blocks: at
    the end. tiles: how the VAE cut, in words; asked_tiles: how it was asked to. rungs: steps down that were taken when
    memory ran out. uncompiled: why the blocks ran as they are though they were to be compiled.
    """

    seconds: float
    device_peak_bytes: int | None = None
    ram_peak_bytes: int | None = None
    moved_bytes: int = 0
    stalled_seconds: float | None = None
    attention: str | None = None
    skipped_steps: int | None = None
    swapped_blocks: int | None = None
    tiles: str | None = None
    rungs: tuple[str, ...] = ()
    uncompiled: str | None = None
    asked_tiles: str | None = None

    def then(self, later: StageReport) -> StageReport:
        """Both as one: the stage was run twice."""
        return replace(
            later,
            seconds=round(self.seconds + later.seconds, 3),
            device_peak_bytes=_largest(self.device_peak_bytes, later.device_peak_bytes),
            ram_peak_bytes=_largest(self.ram_peak_bytes, later.ram_peak_bytes),
            moved_bytes=self.moved_bytes + later.moved_bytes,
            stalled_seconds=_sum(self.stalled_seconds, later.stalled_seconds),
            skipped_steps=_sum(self.skipped_steps, later.skipped_steps),
            rungs=self.rungs + later.rungs,
            uncompiled=later.uncompiled or self.uncompiled,
        )

    def describe(self) -> str:
        """One line: "41.2 s, GPU peak 7.31 GiB, 11.02 GiB moved, ..."."""
        stalled = "" if self.stalled_seconds is None else f", stalled {self.stalled_seconds:.1f} s"
        facts = [
            f"{self.seconds:.1f} s",
            self.device_peak_bytes is not None and f"GPU peak {gib(self.device_peak_bytes)}",
            self.ram_peak_bytes is not None and f"RAM peak {gib(self.ram_peak_bytes)}",
            self.moved_bytes and f"{gib(self.moved_bytes)} moved{stalled}",
            self.swapped_blocks is not None and f"{self.swapped_blocks} blocks swapped",
            self.attention and f"attention {self.attention}",
            self.skipped_steps and f"{self.skipped_steps} steps skipped",
            self.tiles and f"tiles {self.tiles}",
            self.uncompiled and f"not compiled ({self.uncompiled})",
            self.asked_tiles and self.asked_tiles != self.tiles and f"asked for {self.asked_tiles}",
            self.rungs and "memory ran out, so: " + "; ".join(self.rungs),
        ]
        return ", ".join(fact for fact in facts if fact)


@dataclass(frozen=True)
class RunReport:
    """Stages by name, in their order."""

    stages: Mapping[str, StageReport]

    @property
    def seconds(self) -> dict[str, float]:
        """Per stage."""
        return {name: stage.seconds for name, stage in self.stages.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"stages": {name: asdict(stage) for name, stage in self.stages.items()}}

    def describe(self) -> str:
        """A line for each stage."""
        return "\n".join(f"{name.replace('_', ' ')}: {stage.describe()}" for name, stage in self.stages.items())


@dataclass
class StageLog:
    """What a stage says of itself while it runs; the rest is measured around it. See StageReport."""

    traffic: Traffic = field(default_factory=Traffic)
    attention: str | None = None
    skipped_steps: int | None = None
    swapped_blocks: int | None = None
    tiles: str | None = None
    rungs: tuple[str, ...] = ()
    uncompiled: str | None = None
    asked_tiles: str | None = None
    report: StageReport | None = None
    """What became of it, once the stage is over."""


@contextmanager
def measured(device: torch.device) -> Iterator[StageLog]:
    """Measure a stage; its report is in the log afterwards, if the stage failed too."""
    log = StageLog()
    reset_device_peak(device)
    begin = time.perf_counter()
    try:
        yield log
    finally:
        log.report = StageReport(
            round(time.perf_counter() - begin, 3),
            device_peak_bytes(device),
            peak_ram_bytes(),
            log.traffic.moved_bytes,
            log.traffic.stalled_seconds,
            log.attention,
            log.skipped_steps,
            log.swapped_blocks,
            log.tiles,
            log.rungs,
            log.uncompiled,
            log.asked_tiles,
        )


def joined(parts: Iterable[Mapping[str, StageReport]]) -> dict[str, StageReport]:
    """The stages of several parts of a run; a stage that is in two of them counts as one that was run twice."""
    stages: dict[str, StageReport] = {}
    for part in parts:
        for name, stage in part.items():
            stages[name] = stages[name].then(stage) if name in stages else stage
    return stages


def describe_tiles(tiles: Tiles | str | None) -> str:
    """ "256 x 256 x 64, overlap 0.25", or "none", or the word that tiles were asked for with."""
    if tiles is None or isinstance(tiles, str):
        return tiles or "none"
    shared = ", norms shared" if tiles.shared_norms else ""
    return f"{tiles.size} x {tiles.size} x {tiles.frames}, overlap {tiles.overlap:g}{shared}"


def _largest(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other

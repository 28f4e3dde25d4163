"""Stages by name: how long each took, what to try when memory runs out in it, and what there is to know of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ..errors import OutOfMemory
from ..host import Host
from ..memory.machine import gib
from ..memory.ram import free_ram_bytes
from ..memory.vram import free_device_bytes
from ..shortage import is_out_of_memory, release
from .notices import Notice
from .report import RunReport, StageLog, StageReport, joined, measured


@dataclass(frozen=True)
class Stage:
    """title: for progress bars. advice: what to try when memory runs out in it. on_device: what else, where a device
    has a memory of its own."""

    title: str
    advice: str
    on_device: str = ""


_LESS_VIDEO = "Make the video smaller or shorter (--width, --height, --frames)"
_PLAN = "`hyvideo plan` with the same options says by how much it is short, and which settings would make it fit."
_VAE = (
    f"Let the VAE compute in 16 bits (--vae-dtype float16) where it does not, or close other programs. {_LESS_VIDEO}."
)
_TEXT = "Use a language model file in 8 bits if yours is in 16, or close other programs."

STAGES = {
    "load_text": Stage("loading text encoders", _TEXT),
    "encode_text": Stage("encoding text", _TEXT, f"{_PLAN} --device cpu encodes in RAM."),
    "load_vae": Stage("loading VAE", "Close other programs.", "--device cpu keeps it in RAM."),
    "encode_video": Stage("encoding video", _VAE),
    "load_transformer": Stage(
        "loading transformer",
        "Close other programs. Weights that --storage-dtype converts must all be in RAM; those of a file that is "
        "stored so (hyvideo convert --storage) need not be.",
    ),
    "sample": Stage("sampling", f"{_LESS_VIDEO}. {_PLAN}"),
    "decode": Stage("decoding", _VAE),
    "write": Stage("writing", "Close other programs."),
}

_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|[kmgt]ib)", re.I)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def describe_shortage(name: str, error: BaseException, device: torch.device) -> str:
    """What a person can do about memory that ran out in a stage on a device, with the numbers that are known."""
    is_cpu = device.type == "cpu"
    free = free_ram_bytes() if is_cpu else free_device_bytes(device)
    asked = _ASKED.search(str(error))
    facts = [f"{gib(int(float(asked[1]) * _UNITS[asked[2].lower()]))} more were asked for"] if asked else []
    facts += [f"{gib(free)} {'of RAM' if is_cpu else 'of the device'} are free"] if free is not None else []
    stage = STAGES[name]
    advice = stage.advice if is_cpu or not stage.on_device else f"{stage.advice} {stage.on_device}"
    return f"Memory ran out while {stage.title}{': ' if facts else ''}{', '.join(facts)}. {advice}"


class Clock:
    """What each stage took. A stage that it runs is announced to the host, and named if memory runs out in it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inner = 0.0  # seconds of the stages inside the one that runs
        self.stages: dict[str, StageReport] = {}
        self.notices: list[Notice] = []
        self._rungs: dict[str, tuple[str, ...]] = {}

    def step_down(self, name: str, notice: Notice, rung: str) -> None:
        """A stage is run again with less: the notice is told, the rung is for the stage's report."""
        self.notices.append(notice)
        self._rungs[name] = (*self._rungs.get(name, ()), rung)

    @property
    def seconds(self) -> dict[str, float]:
        """Per stage."""
        return RunReport(self.stages).seconds

    @contextmanager
    def stage(self, name: str, is_told: bool = True) -> Iterator[StageLog]:
        """Run a stage of STAGES, or go on with one; it may tell of itself in the log.

        A stage inside another is not counted as the other's time. is_told: announce it to the host. Raises OutOfMemory
        for what PyTorch and Python say when memory runs out.
        """
        self._host.check_interrupt()
        if is_told and name != "sample":  # the sampling loop announces itself, with its number of steps
            self._host.stage(STAGES[name].title, 0)
        outer, self._inner = self._inner, 0.0
        log: StageLog | None = None
        try:
            with measured(self._host.device) as log:
                yield log
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            release(error)
            raise OutOfMemory(describe_shortage(name, error, self._host.device)) from error
        finally:
            if log and log.report:
                spent = log.report.seconds
                rungs = self._rungs.pop(name, ()) + log.report.rungs
                own = replace(log.report, seconds=round(spent - self._inner, 3), rungs=rungs)
                self._inner = outer + spent
                self.stages = joined((self.stages, {name: own}))

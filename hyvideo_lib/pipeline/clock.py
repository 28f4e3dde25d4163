"""Stages by name: how long each took, what to try when memory runs out in it, and what there is to know of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..errors import OutOfMemory
from ..host import Host
from .notices import Notice
from .report import RunReport, StageLog, StageReport, joined, measured
from .shortage import is_out_of_memory, reason_of


@dataclass(frozen=True)
class Stage:
    """title: for progress bars. advice: what to try when memory runs out in it."""

    title: str
    advice: str


_LESS_VIDEO = "Make the video smaller or shorter (--width, --height, --frames)"
_SMALLER_TILES = f"Let the VAE compute in 16 bits (--vae-dtype float16) or close other programs. {_LESS_VIDEO}."

STAGES = {
    "load_text": Stage("loading text encoders", "Use text encoders stored in 16 bits or less, or --device cpu."),
    "encode_text": Stage("encoding text", "Use text encoders stored in 16 bits or less, or --device cpu."),
    "load_vae": Stage("loading VAE", "Use --device cpu, or close other programs."),
    "encode_video": Stage("encoding video", _SMALLER_TILES),
    "load_transformer": Stage("loading transformer", "Keep its weights in 8 bits (--storage-dtype float8_e4m3fn)."),
    "sample": Stage(
        "sampling",
        f"{_LESS_VIDEO}, keep the weights in 8 bits (--storage-dtype float8_e4m3fn) or in RAM (--swap-double 20 "
        "--swap-single 40), or with CFG use --cfg-in-turn.",
    ),
    "decode": Stage("decoding", _SMALLER_TILES),
    "write": Stage("writing", "Close other programs."),
}


class Clock:
    """What each stage took. A stage that it runs is announced to the host, and named if memory runs out in it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inner = 0.0  # seconds of the stages inside the one that runs
        self.stages: dict[str, StageReport] = {}
        self.notices: list[Notice] = []

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
            where = f"Memory ran out while {STAGES[name].title} ({reason_of(error)})."
            raise OutOfMemory(f"{where} {STAGES[name].advice}") from error
        finally:
            if log and log.report:
                spent = log.report.seconds
                own = replace(log.report, seconds=round(spent - self._inner, 3))
                self._inner = outer + spent
                self.stages = joined((self.stages, {name: own}))

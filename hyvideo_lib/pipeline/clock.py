"""Stages by name: how long each took, and what to try when memory runs out in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import OutOfMemory
from ..host import Host
from .report import StageLog, StageReport, joined, measured
from .shortage import is_out_of_memory, reason_of


@dataclass(frozen=True)
class Stage:
    """title: for progress bars. advice: what to try when memory runs out in it."""

    title: str
    advice: str


_LESS_VIDEO = "Make the video smaller or shorter (--width, --height, --frames)"
_SMALLER_TILES = (
    f"Decode in tiles, or in smaller ones (--tiles reference, --tiles 128). {_LESS_VIDEO} if that is not enough."
)

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
        self.stages: dict[str, StageReport] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Per stage."""
        return {name: stage.seconds for name, stage in self.stages.items()}

    @contextmanager
    def stage(self, name: str) -> Iterator[StageLog]:
        """Run a stage of STAGES, which may tell of itself in the log.

        Raises OutOfMemory for what PyTorch and Python say when memory runs out.
        """
        self._host.check_interrupt()
        if name != "sample":  # the sampling loop announces itself, with its number of steps
            self._host.stage(STAGES[name].title, 0)
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
                self.stages = joined((self.stages, {name: log.report}))

"""Fuzzers: hypothesis looks for whatever makes a reader raise anything but our errors, for as long as it is given.

Each target takes bytes or texts that hypothesis builds, mutates and shrinks. What was found becomes a test beside
`tests/hostile/test_fuzz.py`.
"""

from __future__ import annotations

import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from benchmarks.hostile.figures import Figure, Scale
from benchmarks.hostile.files import read_everything
from benchmarks.hostile.fuzz_examples import gguf_bytes, lora_headers, mp4_bytes, safetensors_bytes
from hyvideo_lib.checkpoint.examine import examine
from hyvideo_lib.checkpoint.header import Header
from hyvideo_lib.checkpoint.lora_resolve import resolve
from hyvideo_lib.errors import HyvError
from hyvideo_lib.transformer import TransformerConfig
from hyvideo_lib.video import is_mp4, read_settings

BATCH = 2000
"""Examples between two looks at the clock."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed: examples, and a function that takes one and may raise HyvError only."""

    examples: SearchStrategy[Any]
    take: Callable[[Any], object]


# What takes it


def _from_file(read: Callable[[Path], object], folder: Path, suffix: str) -> Callable[[bytes], object]:
    path = folder / f"fuzzed{suffix}"

    def take(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return take


def _read_video(path: Path) -> object:
    return is_mp4(path) and read_settings(path)


def _read_lora(header: Header) -> object:
    examine(header)
    return resolve(header, SMALL)


SMALL = TransformerConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=48,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=2,
    rope_axes=(4, 10, 10),
    text_dim=24,
    pooled_dim=20,
)


def targets(folder: Path) -> Mapping[str, Target]:
    """What is fuzzed, by name."""
    return {
        "safetensors header": Target(safetensors_bytes(), _from_file(read_everything, folder, ".safetensors")),
        "GGUF header": Target(gguf_bytes(), _from_file(read_everything, folder, ".gguf")),
        "LoRA keys": Target(lora_headers(), _read_lora),
        "mp4 settings": Target(mp4_bytes(), _from_file(_read_video, folder, ".mp4")),
    }


def fuzz(figure: Figure, target: Target, seconds: float, first_seed: int) -> None:
    """Give a target examples for so long; what it raises that is not ours is counted against the figure."""

    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.target, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.examples)
    def run(example: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                target.take(example)
        except HyvError:
            pass
        figure.notes["examples"] = figure.notes.get("examples", 0) + 1

    begin, number = time.monotonic(), first_seed
    while time.monotonic() - begin < seconds:
        try:
            seed(number)(run)()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            notes = " ".join(getattr(error, "__notes__", ()))
            figure.add(f"{type(error).__name__}: {error} at {place.filename}:{place.lineno} {notes[:1000]}")
        else:
            figure.add(None)
        number += 1
    figure.notes["minutes"] = round((time.monotonic() - begin) / 60, 1)


def run(scale: Scale) -> Iterator[Figure]:
    """Every target with `scale.only` in its name for `scale.minutes`."""
    with tempfile.TemporaryDirectory(dir=scale.folder) as folder:
        chosen = {name: target for name, target in targets(Path(folder)).items() if scale.only in name}
        for name, target in chosen.items():
            figure = Figure("fuzz", f"{name}: batches of {BATCH} examples without an uncaught exception")
            fuzz(figure, target, 60 * scale.minutes, scale.seed)
            yield figure

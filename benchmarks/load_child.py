"""One measurement of `load.py` in a fresh process: imports, then the clock and the watch on memory, then JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

INTERVAL = 0.002
"""Seconds between two looks at the process's memory."""


class MemoryWatch:
    """Peak of the process's anonymous and resident memory inside a `with` block; Linux only, elsewhere zeros.

    Anonymous memory is what a process has written itself and cannot be dropped; pages of a mapped file are not in it.
    """

    def __init__(self) -> None:
        self._start = read_status()["RssAnon"]
        self.anonymous_bytes = 0
        self.peak_resident_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            is_last = self._done.is_set()
            status = read_status()
            self.anonymous_bytes = max(self.anonymous_bytes, status["RssAnon"] - self._start)
            self.peak_resident_bytes = max(self.peak_resident_bytes, status["VmRSS"])
            if is_last:
                return
            self._done.wait(INTERVAL)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def read_status() -> dict[str, int]:
    """Bytes of /proc/self/status by name."""
    found = {"RssAnon": 0, "VmRSS": 0}
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found


def timed(call: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """(seconds and memory of a call, what it returned)."""
    with MemoryWatch() as watch:
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
    report = {
        "seconds": seconds,
        "anonymous_bytes": watch.anonymous_bytes,
        "peak_resident_bytes": watch.peak_resident_bytes,
    }
    return report, result


def load_ours(path: Path) -> dict[str, Any]:
    from hyvideo_lib.checkpoint import load_transformer

    return timed(lambda: load_transformer(path))[0]


def cast_ours(path: Path) -> dict[str, Any]:
    """A bf16 file to a model in plain fp8. above_result_bytes: the peak less what the model itself holds."""
    from hyvideo_lib.checkpoint import load_transformer
    from hyvideo_lib.memory import module_bytes
    from hyvideo_lib.quant import is_kept_in_plain_fp8

    report, model = timed(lambda: load_transformer(path, torch.float8_e4m3fn))
    state = model.state_dict().items()
    cast = sum(tensor.nbytes for name, tensor in state if not is_kept_in_plain_fp8(name))
    return {
        **report,
        "above_result_bytes": report["anonymous_bytes"] - cast,
        "block_bytes": module_bytes(model.double_blocks[0]),
    }


def convert_ours(path: Path) -> dict[str, Any]:
    """The same as a file."""
    from hyvideo_lib.checkpoint.convert import convert_file
    from hyvideo_lib.checkpoint.rewrite import Request

    target = path.with_name("converted.safetensors")
    report, _ = timed(lambda: convert_file(path, target, Request(storage="float8_e4m3fn")))
    return {**report, "written_bytes": target.stat().st_size}


def load_safetensors(path: Path) -> dict[str, Any]:
    """The tensors alone, without a model to hold them."""
    from safetensors.torch import load_file

    return timed(lambda: load_file(path))[0]


def load_diffusers(path: Path) -> dict[str, Any]:
    """Its own loader of single files, told the sizes so that it asks nobody."""
    from diffusers import HunyuanVideoTransformer3DModel

    from hyvideo_lib.checkpoint import inspect_file

    folder = path.parent / "diffusers_config"
    folder.mkdir(exist_ok=True)
    with torch.device("meta"):
        HunyuanVideoTransformer3DModel(**_diffusers_sizes(inspect_file(path).config)).save_config(folder)

    def load() -> Any:
        return HunyuanVideoTransformer3DModel.from_single_file(
            path, config=str(folder), subfolder=None, torch_dtype=None, local_files_only=True
        )

    return timed(load)[0]


def _diffusers_sizes(config: Any) -> dict[str, Any]:
    return {
        "num_attention_heads": config["num_heads"],
        "num_layers": config["num_double_blocks"],
        "num_single_layers": config["num_single_blocks"],
        "text_embed_dim": config["text_dim"],
        "pooled_projection_dim": config["pooled_dim"],
    }


@torch.no_grad()
def forward(path: Path) -> dict[str, Any]:
    """Load, then one frame of 256 x 256 with 64 text tokens in bf16, twice."""
    from hyvideo_lib.checkpoint import load_transformer

    model = load_transformer(path)
    config, generator = model.config, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = (
        noise(1, config.in_channels, 1, 32, 32),
        torch.tensor([500.0]),
        noise(1, 64, config.text_dim),
        None,
        noise(1, config.pooled_dim),
        6.0,
    )
    report, velocity = timed(lambda: model(*inputs))
    again, _ = timed(lambda: model(*inputs))
    return {**report, "is_finite": bool(velocity.isfinite().all()), "seconds_again": again["seconds"]}


SIDES = {
    "hyvideo": load_ours,
    "safetensors": load_safetensors,
    "diffusers": load_diffusers,
    "forward": forward,
    "cast": cast_ours,
    "convert": convert_ours,
}


if __name__ == "__main__":
    print(json.dumps(SIDES[sys.argv[1]](Path(sys.argv[2]))))

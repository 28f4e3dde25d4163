"""`hyvideo doctor`: what is here to run with, what is missing, and how to get it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

from ..demo import assets
from .arguments import Parser
from .report import Console

SUMMARY = "Show versions, devices, memory, attention backends and matrix products, and what is missing."


class Package(NamedTuple):
    """module: what is imported. need: what does not work without it; empty if all else does."""

    module: str
    distribution: str
    install: str
    need: str = ""


HEAD_DIM = 128
"""Width of the released model's heads."""

PACKAGES = (
    Package("torch", "torch", "see https://pytorch.org for the command that fits your device", "everything"),
    Package("numpy", "numpy", "pip install numpy", "reading and writing videos"),
    Package("safetensors", "safetensors", "pip install safetensors", "keeping latents"),
    Package("transformers", "transformers", "pip install transformers", "text encoders"),
    Package("tokenizers", "tokenizers", "pip install tokenizers", "text encoders"),
    Package("imageio_ffmpeg", "imageio-ffmpeg", "pip install imageio-ffmpeg", "reading and writing videos"),
    Package("llama_models", "llama-models", "pip install llama-models (for Llama-3 files without a tokenizer.json)"),
)
"""Those with a `need` must be there."""


def add_arguments(parser: Parser) -> None:
    parser.description = f"{SUMMARY} Exit code 1 if something that is needed is missing."


def run(options: Namespace, console: Console) -> int:
    """Look at everything; nothing that fails here stops the rest."""
    from .. import __version__

    problems: list[str] = []
    report: dict[str, Any] = {
        "hyvideo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(problems),
        "ffmpeg": _try(_ffmpeg, problems, "ffmpeg"),
        "memory": _memory(),
        "devices": _try(_devices, problems, "devices") or [],
        "demo_model": _demo_model(problems),
    }
    report["problems"] = problems
    console.say(_text(report))
    console.result(report)
    return 1 if problems else 0


def _packages(problems: list[str]) -> dict[str, str | None]:
    """Version of each package, None where it is missing. Broken ones count as missing."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            if importlib.util.find_spec(package.module) is None:
                raise PackageNotFoundError(package.module)
            found[package.distribution] = version(package.distribution)
        except (ImportError, ValueError):  # PackageNotFoundError is an ImportError
            found[package.distribution] = None
            if package.need:
                problems.append(f"{package.distribution} is missing, needed for {package.need}: {package.install}")
    return found


def _ffmpeg() -> dict[str, str]:
    from ..video.ffmpeg import find_ffmpeg

    path = find_ffmpeg()
    from imageio_ffmpeg import get_ffmpeg_version

    return {"path": path, "version": get_ffmpeg_version()}


def _devices() -> list[dict[str, Any]]:
    import torch

    from ..device import on_device
    from .options import available_devices

    devices = []
    for name in available_devices():
        with on_device(torch.device(name)):  # other people's kernels run on the current one
            device: dict[str, Any] = {"name": name, "attention": _attention(name), "matmul": _matmul(name)}
        if name.startswith("cuda"):
            properties = torch.cuda.get_device_properties(name)
            free, total = torch.cuda.mem_get_info(name)
            device |= {
                "model": properties.name,
                "total_bytes": total,
                "free_bytes": free,
                "capability": f"{properties.major}.{properties.minor}",
            }
        devices.append(device)
    return devices


def _attention(device: str) -> dict[str, str]:
    """PyTorch's attention kernels and the other backends, each tried on a small input: "ok", or why not."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from ..attention import BACKENDS, attend, verdicts

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, v = torch.randn(3, 1, 2, 64, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    expected = torch.softmax(q.float() @ k.float().mT / 8.0, dim=-1) @ v.float()

    def probe(run: Callable[[], torch.Tensor]) -> str:
        try:
            difference = (run().float() - expected).abs().max().item()
        except Exception as error:  # what an unavailable kernel raises is not specified
            return (str(error).splitlines() or [type(error).__name__])[0]
        return "ok" if difference < 0.05 else f"wrong by {difference:.2g}"

    def with_kernel(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            return attend(q, k, v)

    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    if not device.startswith("cuda"):
        kernels = {name: kernels[name] for name in ("flash", "math")}
    results = {"sdpa": probe(lambda: attend(q, k, v))}
    for name, backend in kernels.items():
        results[f"sdpa {name}"] = probe(lambda backend=backend: with_kernel(backend))  # type: ignore[misc]
    for name, verdict in verdicts(torch.device(device), HEAD_DIM, dtype).items():
        if name != "sdpa":
            results[name] = "ok" if verdict else f"{verdict.reason}. {BACKENDS[name].install}"
    return results


def _matmul(device: str) -> dict[str, str]:
    """The products in 8 bits, each tried in the transformer's compute dtype: "ok", or why not."""
    import torch

    from ..errors import InvalidSetting, OutOfMemory
    from ..pipeline import Precision
    from ..quant import PRODUCTS, probe_product

    results = {}
    for name in PRODUCTS:
        try:
            probe_product(name, device, Precision().transformer_dtype(torch.device(device)))
            results[name] = "ok"
        except (InvalidSetting, OutOfMemory) as error:
            results[name] = str(error)
    return results


def _memory() -> dict[str, int | None]:
    """Bytes of RAM, all and free; None where the system does not say."""

    def pages(name: str) -> int | None:
        try:
            return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not all names
            return None

    return {"total_bytes": pages("SC_PHYS_PAGES"), "free_bytes": pages("SC_AVPHYS_PAGES")}


def _demo_model(problems: list[str]) -> dict[str, Any]:
    files = (assets.TRANSFORMER, assets.VAE, assets.LLM, assets.CLIP)
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        problems.append(
            f"The demo model is incomplete ({', '.join(missing)} missing in {assets.FOLDER}): install hyvideo again."
        )
    return {"folder": str(assets.FOLDER), "missing": missing}


def _try(look: Callable[[], Any], problems: list[str], what: str) -> Any:
    try:
        return look()
    except Exception as error:  # a doctor does not faint; a broken package may raise anything
        problems.append(f"{what}: {error}")
        return None


def _text(report: dict[str, Any]) -> str:
    memory = report["memory"]
    lines = [
        f"hyvideo {report['hyvideo']}, Python {report['python']} at {sys.executable}",
        f"{report['platform']}, RAM {_gib(memory['total_bytes'])}, {_gib(memory['free_bytes'])} unused",
        "",
    ]
    for package in PACKAGES:
        version = report["packages"][package.distribution]
        lines.append(f"  {package.distribution:16} {version or 'missing: ' + package.install}")
    if report["ffmpeg"]:
        lines.append(f"  {'ffmpeg':16} {report['ffmpeg']['version']}")
    for device in report["devices"]:
        about = ""
        if "model" in device:
            about = f" {device['model']}, {_gib(device['total_bytes'])}, {_gib(device['free_bytes'])} free"
        lines += ["", f"device {device['name']}{about}"]
        for kind in ("attention", "matmul"):
            lines += [f"  {kind:9} {name:16} {result}" for name, result in device[kind].items()]
    missing = report["demo_model"]["missing"]
    lines += ["", f"demo model: {'complete' if not missing else 'missing ' + ', '.join(missing)}"]
    lines += ["", *(report["problems"] or ["Nothing is missing."])]
    return "\n".join(lines)


def _gib(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"

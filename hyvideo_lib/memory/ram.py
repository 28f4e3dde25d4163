"""How much RAM there is to have."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def free_ram_bytes() -> int | None:
    """Bytes of RAM that can be taken without swapping to disk; None if the system does not say.

    Pages that only hold parts of files count as free. psutil answers where it is installed, as it is beside ComfyUI.
    """
    try:
        return int(import_module("psutil").virtual_memory().available)
    except ImportError:
        pass
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def peak_ram_bytes() -> int | None:
    """The most RAM that this process has held since it began, files mapped into it included; None if unknown."""
    try:
        resource = import_module("resource")
    except ImportError:  # Windows
        return _windows_peak()
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else 1024 * peak


def _windows_peak() -> int | None:
    try:
        return int(import_module("psutil").Process().memory_info().peak_wset)
    except (ImportError, AttributeError):
        return None

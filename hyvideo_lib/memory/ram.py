"""How much RAM there is to have."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_ram_bytes() -> int | None:
    """Bytes of RAM that can be taken without swapping to disk; None if the system does not say.

    Pages that only hold parts of files count as free. psutil answers where it is installed, as it is beside ComfyUI.
    Both see the whole machine; in a container or a service with less, its own limit counts.
    """
    known = [num_bytes for num_bytes in (_system_free(), _group_free()) if num_bytes is not None]
    return min(known, default=None)


def _system_free() -> int | None:
    try:
        return int(import_module("psutil").virtual_memory().available)
    except ImportError:
        pass
    return _told("MemAvailable")


def free_swap_bytes() -> int:
    """Bytes that the system can still move from RAM to disk, as far as it says."""
    try:
        return int(import_module("psutil").swap_memory().free)
    except (ImportError, OSError, RuntimeError):  # Windows without performance counters says the last
        return _told("SwapFree") or 0


def _told(name: str) -> int | None:
    """Bytes that Linux gives under this name."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _group_free() -> int | None:
    """What the control groups that this process is in leave to it (Linux, version 2); None if they have no limit."""
    try:
        own = next(line for line in OWN_GROUP.read_text(encoding="utf-8").splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return None
    folder = GROUPS / own.removeprefix("0::/")
    groups = (folder, *folder.parents[: len(folder.parts) - len(GROUPS.parts)])
    return min((free for group in groups if (free := _left_in(group)) is not None), default=None)


def _left_in(group: Path) -> int | None:
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    files = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))  # given back when there is need
    return max(0, int(limit) - int(used) + files)


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

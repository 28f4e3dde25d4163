"""Saves that are killed, and saves onto a full disk: the final name is absent, or as before, or complete.

A kill is SIGKILL to a process that saves, at a moment chosen at random within the time that a save takes. A full disk
is a real one where mounting is allowed (a tmpfs of a few pages), else the system's limit on the size of files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import random
import resource
import select
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.hostile.figures import Figure, Scale
from benchmarks.hostile.save_kinds import SAVES, Save
from benchmarks.hostile.surroundings import silence
from hyvideo_lib.errors import DiskFull, HyvError

ATTEMPTS = 20
"""At most so many saves are begun for each that is to be killed: some end before the signal comes."""


# A process of its own for every save


MARK = f"HYVIDEO_HOSTILE_{os.getpid()}"
"""A variable in the environment of everything that a save starts."""


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run work in a fork. Its exit status: 0 well, 3 DiskFull, 4 another of ours, 5 anything else; -9 killed."""
    child = os.fork()
    if not child:
        status = 5
        try:
            os.environ[MARK] = "1"
            with silence():
                work()
            status = 0
        except DiskFull:
            status = 3
        except HyvError:
            status = 4
        except BaseException:
            status = 5
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def fingerprint(path: Path) -> str | None:
    """Of the file at a name, None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def what_is_wrong(save: Save, path: Path, before: str | None) -> tuple[str | None, str]:
    """(problem or None, outcome) of the file at the final name."""
    now = fingerprint(path)
    if now == before:
        return None, "absent" if now is None else "as before"
    try:
        save.check(path)
    except Exception as error:
        return f"half a file: {type(error).__name__}: {str(error)[:200]}", "half"
    return None, "complete"


def kills(name: str, save: Save, scale: Scale) -> Figure:
    """Kills at random moments; every other save is onto a file that is there already."""
    figure = Figure("saves", f"{name}: killed, final name absent, as before, or complete")
    rng = random.Random(f"{scale.seed} {name}")
    folder = scale.folder / f"kill-{name}"
    folder.mkdir()
    path = folder / f"a{save.suffix}"
    durations = []
    for _ in range(3):
        begin = time.perf_counter()
        assert in_child(lambda: save.write(path)) == 0, f"{name} cannot be saved at all"
        durations.append(time.perf_counter() - begin)
    save.check(path)
    path.unlink()
    usual, left, attempts = statistics.median(durations), 0, 0
    wanted = scale.count(100)
    while figure.wanted < wanted and attempts < ATTEMPTS * wanted:
        attempts += 1
        path.unlink(missing_ok=True)
        if attempts % 2:
            path.write_bytes(b"the file before")
        before = fingerprint(path)
        status = in_child(lambda: save.write(path), kill_after=rng.uniform(0, 1) * usual)
        wait_for_quiet(folder)
        problem, outcome = what_is_wrong(save, path, before)
        if status == -signal.SIGKILL or problem is not None:  # one that had ended already was not killed
            figure.add(problem and f"kill {attempts} (status {status}): {problem}", outcome)
            left += sum(other != path for other in folder.iterdir())
        for other in folder.iterdir():
            other.unlink()
    folder.rmdir()
    if figure.wanted < wanted:
        figure.add(f"only {figure.wanted} of {attempts} saves could be killed before they ended")
    figure.notes.update(attempts=attempts, temporary_files_left=left)
    return figure


def wait_for_quiet(folder: Path, seconds: float = 30.0) -> None:
    """Until nobody writes in a folder any more: what a killed process had started ends after it."""

    def sizes() -> list[tuple[str, int]]:
        return sorted((path.name, path.stat().st_size) for path in folder.iterdir())

    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end and ((now := sizes()) != last or _is_alive()):
        last = now
        select.select([], [], [], 0.05)


def _is_alive() -> bool:
    """Whether a process that a save started is still there, by the mark in its environment (Linux)."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if MARK.encode() in path.read_bytes():
                return True
    return False


# Full disks


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of so many bytes at `folder`; whether that was allowed. (Linux, as root.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    mounted = libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()) == 0
    try:
        yield mounted
    finally:
        if mounted and libc.umount(os.fsencode(folder)):
            raise OSError(ctypes.get_errno(), f"{folder} stays mounted: {errno.errorcode[ctypes.get_errno()]}")


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond a size; writing more is an error, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disks(name: str, save: Save, scale: Scale) -> Figure:
    """Disks with room for a random part of the file: real ones and limits in turns."""
    figure = Figure("saves", f"{name}: disk full, said so, final name absent or as before")
    rng = random.Random(f"{scale.seed} full {name}")
    reference = scale.folder / "whole" / f"a{save.suffix}"
    reference.parent.mkdir(exist_ok=True)
    assert in_child(lambda: save.write(reference)) == 0, f"{name} cannot be saved at all"
    whole = reference.stat().st_size
    reference.unlink()
    real = 0
    for number in range(scale.count(50)):
        folder = scale.folder / f"disk-{number}"
        room = int(whole * rng.uniform(0.02, 0.9))
        is_limit = number % 2 == 1
        with small_disk(folder, 16 * whole if is_limit else room + 4096) as mounted:
            path = folder / f"a{save.suffix}"
            if number % 4 >= 2:
                path.write_bytes(b"before")
            before = fingerprint(path)

            def work(path: Path = path, room: int = room, use_limit: bool = is_limit or not mounted) -> None:
                if use_limit:
                    limit_files(room)
                save.write(path)

            status = in_child(work)
            real += mounted and not is_limit
            problem, outcome = what_is_wrong(save, path, before)
            left = [other.name for other in folder.iterdir() if other != path]
            if problem is None and outcome == "complete":
                problem = "it was written all the same"
            if problem is None and status != 3:
                problem = f"status {status} instead of DiskFull"
            if problem is None and left:
                problem = f"{left} left behind"
            figure.add(problem and f"disk {number} with {room} of {whole} bytes: {problem}", outcome)
        if not mounted:
            for other in folder.iterdir():
                other.unlink()
        folder.rmdir()
    figure.notes["real_disks"] = real
    return figure


def run(scale: Scale, saves: Mapping[str, Save] = SAVES) -> Iterator[Figure]:
    """100 kills and 50 full disks for every kind of save; only those with `scale.only` in "<kind>: <what>"."""
    for name, save in saves.items():
        for what, work in (("kills", kills), ("full disks", full_disks)):
            if scale.only in f"{name}: {what}":
                yield work(name, save, scale)

"""Mutated model files through the readers: each ends in one of our errors or loads whole, soon, in little memory."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import re
import signal
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.hostile import gguf_files, safetensors_files
from benchmarks.hostile.figures import Figure, Scale
from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.read import Header, map_tensors, read_header
from hyvideo_lib.errors import BadInput

SECONDS = 5.0
FACTOR = 2
LARGE = 2**20
ALLOWANCE = 8 * 2**20
"""Bytes beyond FACTOR times the file that any reading may take: a header with as many lines as are free."""


class Hang(BaseException):
    """Raised by the alarm; no reader may swallow it."""


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raise Hang in the block after so many seconds."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_everything(path: Path) -> str:
    """What our readers make of a file: "loaded", or the code of their refusal. Raises AssertionError for half of it."""
    try:
        header = read_header(path)
    except BadInput as error:
        check_message(error)
        refused = error.code
    else:
        refused = ""
    try:
        report = inspect_file(path)
    except BadInput as error:
        check_message(error)
        if not refused:
            raise AssertionError(f"read_header takes it, inspect_file says {error}") from error
        return refused
    check_message(report.reason)
    if refused:
        assert not report.supported, f"read_header refuses it ({refused}), inspect_file says it can be used"
        return refused
    try:
        tensors = map_tensors(header)
    except BadInput as error:
        return error.code
    check_whole(header, tensors)
    return "loaded"


def read_wastefully(path: Path) -> str:
    """A reader that takes more than any may: what looks at memory has to see it."""
    return str(len(b"x" * (FACTOR * path.stat().st_size + 8 * ALLOWANCE)))


def check_message(error: object) -> None:
    """A sentence that a terminal and a log can show, of a length that a person reads."""
    text = str(error)
    text.encode("utf-8")
    assert len(text) < 5000, f"a message of {len(text)} characters"
    assert "\0" not in text, "a NUL in the message"


def check_whole(header: Header, tensors: dict[str, Tensor]) -> None:
    """Every tensor of the header is there, and together they are the file."""
    assert tensors.keys() == header.tensors.keys(), "names differ"
    for name, info in header.tensors.items():
        tensor = tensors[name]
        assert tensor.numel() * tensor.element_size() == info.num_bytes, f"{name!r} has another number of bytes"
        if getattr(header, "format", "safetensors") == "safetensors":
            assert tuple(tensor.shape) == info.shape, f"{name!r} has another shape"
    data = header.path.read_bytes()
    for name, info in header.tensors.items():
        # Compared as bytes: NaN differs from itself, and a mutated file may hold some.
        found = tensors[name].contiguous().reshape(-1).view(torch.uint8) if info.num_bytes else torch.empty(0)
        assert found.numel() == info.num_bytes, name
        assert bytes(found.numpy()) == data[info.start : info.end], f"{name!r} has other bytes than the file"
    assert all(info.end <= len(data) for info in header.tensors.values()), "a tensor beyond the end"


def check_against_the_package(path: Path) -> None:
    """What we load, the safetensors package must load as well, and equal: we may only be stricter.

    But for metadata that are no text, which it refuses: then it is given the file without them.
    """
    from safetensors.torch import load

    data = path.read_bytes()
    if read_header(path).notes:
        table, body = safetensors_files.split(data)
        data = safetensors_files.join({name: entry for name, entry in table.items() if name != "__metadata__"}, body)
    try:
        theirs = load(data)
    except KeyError:  # a dtype of the format that its PyTorch side has no word for
        return
    ours = map_tensors(read_header(path))
    assert theirs.keys() == ours.keys(), "the safetensors package finds other tensors"
    for name, tensor in theirs.items():
        assert (tensor.dtype, tensor.shape) == (ours[name].dtype, ours[name].shape), f"{name!r}: not as the package"


def timed(path: Path, read: Callable[[Path], str]) -> tuple[str | None, str, float]:
    """(problem or None, outcome, seconds) of reading a file."""
    begin = time.perf_counter()
    problem = None
    try:
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = read(path)
    except Hang:
        outcome, problem = "hang", f"more than {SECONDS:g} s"
    except Exception as error:
        outcome, problem = "uncaught", f"{type(error).__name__}: {str(error)[:300]}"
    return problem, outcome, time.perf_counter() - begin


def traced_peak(path: Path, read: Callable[[Path], str]) -> int:
    """Bytes that Python hands out at most while a file is read. Being counted makes everything several times slower."""
    tracemalloc.start()
    try:
        with contextlib.suppress(Exception):  # judged elsewhere
            read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peak_of(path: Path, read: Callable[[Path], str], size: int) -> int:
    """Bytes that reading takes at most: counted by Python, or for large files by the system, which costs no time."""
    is_countable = size < LARGE or not Path("/proc/self/clear_refs").exists()
    return traced_peak(path, read) if is_countable else resident_peak(path, read)


def run_case(path: Path, data: bytes, read: Callable[[Path], str]) -> tuple[str | None, str, float, int]:
    """(problem or None, outcome, seconds, peak bytes) of one file."""
    path.write_bytes(data)
    problem, outcome, seconds = timed(path, read)
    peak = peak_of(path, read, len(data)) if outcome != "hang" else 0
    if problem is None and peak > FACTOR * len(data) + ALLOWANCE:
        problem = f"{peak / 2**20:.1f} MiB for a file of {len(data) / 2**20:.2f} MiB"
    return problem, outcome, seconds, peak


def run_cases(
    figure: Figure, cases: Iterator[tuple[str, bytes]], folder: Path, suffix: str, is_checked_by_package: bool
) -> Figure:
    """All cases of one format; the slowest, and the largest use of memory beyond the file, in the notes."""
    path = folder / f"case{suffix}"
    slowest, largest = 0.0, -math.inf
    for number, (kind, data) in enumerate(cases):
        problem, outcome, seconds, peak = run_case(path, data, read_everything)
        if outcome == "loaded" and is_checked_by_package and problem is None:
            try:
                check_against_the_package(path)
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:300]}"
        slowest, largest = max(slowest, seconds), max(largest, peak - FACTOR * len(data))
        figure.add(problem and f"case {number}, {kind}: {problem}", outcome)
    path.unlink(missing_ok=True)
    figure.notes["slowest_s"] = round(slowest, 2)
    figure.notes["most_memory_beyond_twice_the_file_MiB"] = round(largest / 2**20, 2)
    return figure


def resident_peak(path: Path, read: Callable[[Path], str] = read_everything) -> int:
    """Bytes by which reading a file raises the resident memory of a process (Linux).

    Of one that has done nothing else: what another freed before decides what its heap gives back.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(path, read, send))
    process.start()
    send.close()
    with receive:
        peak: int = receive.recv()
    process.join()
    process.close()
    return peak


def _send_peak(path: Path, read: Callable[[Path], str], send: Connection) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmHWM")
    with contextlib.suppress(BaseException), time_limit():  # counted elsewhere; here only memory is looked at
        read(path)
    send.send(_status("VmHWM") - before)


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def resident_figure(scale: Scale) -> Figure:
    """The huge files again, with what the operating system sees instead of what Python counts."""
    figure = Figure("files", f"huge files within {FACTOR} times their size and {ALLOWANCE >> 20} MiB, resident memory")
    largest = -math.inf
    huge = [(f"safetensors, {name}", make) for name, make in safetensors_files.HUGE.items()]
    huge += [(f"GGUF, {name}", make) for name, make in gguf_files.HUGE.items()]
    for name, make in huge:
        path = scale.folder / "huge"
        size = path.write_bytes(make())
        peak = resident_peak(path)
        largest = max(largest, peak - FACTOR * size)
        over = peak > FACTOR * size + ALLOWANCE
        figure.add(f"{name}: {peak / 2**20:.1f} MiB for {size / 2**20:.1f} MiB" if over else None)
        path.unlink()
    figure.notes["most_beyond_MiB"] = round(largest / 2**20, 1)
    return figure


def run(scale: Scale) -> Iterator[Figure]:
    """10,000 mutated files of both formats."""
    bounds = f"within {SECONDS:g} s and {FACTOR} times the file + {ALLOWANCE >> 20} MiB"
    for what, count, make, suffix in (
        ("safetensors", 6000, safetensors_files.cases, ".safetensors"),
        ("GGUF", 4000, gguf_files.cases, ".gguf"),
    ):
        figure = Figure("files", f"mutated {what} refused or whole, {bounds}")
        cases = make(scale.seed, scale.count(count))
        yield run_cases(figure, cases, scale.folder, suffix, is_checked_by_package=what == "safetensors")
    yield resident_figure(scale)

"""The ffmpeg program: where it is, and running it so that it neither outlives us nor hears our Ctrl-C."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import MissingPackage

_KEPT_LINES = 20


def find_ffmpeg() -> str:
    """Path of the ffmpeg that imageio-ffmpeg carries (or finds). Raises MissingPackage."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise MissingPackage(
            f"Reading and writing mp4 files needs ffmpeg ({error}). Install it with: pip install imageio-ffmpeg"
        ) from error


def file_url(path: Path) -> str:
    """A path as ffmpeg's argument: never taken for an option or for another protocol."""
    return f"file:{path.absolute()}"


class Process:
    """A running ffmpeg. `lines` (its last ones on stderr) and `complaints` (they in one) are whole after `finish`."""

    def __init__(self, arguments: Sequence[str], feeds: bool, level: str, kept_lines: int) -> None:
        # A terminal's Ctrl-C goes to its whole foreground group; ffmpeg is stopped by us alone, when we are done.
        self.popen: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 (no shell)
            [find_ffmpeg(), "-v", level, "-nostdin", *arguments],
            stdin=subprocess.PIPE if feeds else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if feeds else subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._lines: deque[str] = deque(maxlen=kept_lines)
        # Read all the time: ffmpeg waits for ever once the pipe of its complaints is full.
        self._reader = threading.Thread(target=self._collect, args=(self.popen.stderr,), daemon=True)
        self._reader.start()

    @property
    def stdin(self) -> IO[bytes]:
        assert self.popen.stdin is not None
        return self.popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    @property
    def complaints(self) -> str:
        return " ".join(line.strip() for line in self._lines)

    def finish(self) -> int:
        """Wait for it, and for what it had to say. Returns its exit status."""
        status = self.popen.wait()
        self._reader.join()
        return int(status)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.finish()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # closing flushes, to a process that is gone
                    continue

    def _collect(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self._lines.append(line.decode("utf-8", "replace").rstrip())


@contextmanager
def running(
    arguments: Sequence[str], feeds: bool = False, level: str = "error", kept_lines: int = _KEPT_LINES
) -> Iterator[Process]:
    """Run ffmpeg; `feeds` opens its stdin, otherwise its stdout is open. It is killed if the block ends before it.

    level: how much it says. kept_lines: how many of the last ones are kept.
    """
    process = Process(arguments, feeds, level, kept_lines)
    try:
        yield process
    finally:
        process.close()

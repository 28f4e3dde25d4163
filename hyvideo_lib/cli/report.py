"""The one place that writes to stdout and stderr.

stdout holds results: sentences for people, or with --json one object. stderr holds the rest: progress, log lines,
errors in words.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

from ..errors import HyvError, MissingPackage, RunFailed

LIBRARY = __name__.rsplit(".", 2)[0]
PLAIN_INTERVAL = 5.0
"""Seconds between progress lines where they cannot overwrite each other."""


class Console:
    """Where a verb speaks. `configure` once the options are known, `close` at the end."""

    def __init__(self, as_json: bool = False, debug: bool = False) -> None:
        self.as_json, self.debug, self.quiet = as_json, debug, False
        self._status_width = 0
        self._last_status = 0.0
        self._handler = _LogHandler(self)
        self._logger = logging.getLogger(LIBRARY)
        self._logger.addHandler(self._handler)
        self._level_before, self._propagate_before = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.DEBUG if debug else logging.WARNING)

    def configure(self, quiet: bool, verbose: bool) -> None:
        self.quiet = quiet
        if verbose and not self.debug:
            self._logger.setLevel(logging.INFO)

    @property
    def is_terminal(self) -> bool:
        """Whether a line on stderr can be overwritten."""
        return sys.stderr.isatty()

    def say(self, text: str) -> None:
        """A result in words, on stdout; nothing with --json."""
        if not self.as_json:
            self._clear_status()
            _write(sys.stdout, text + "\n")

    def note(self, text: str) -> None:
        """A line on stderr that stays."""
        self._clear_status()
        _write(sys.stderr, text + "\n")

    def progress(self, text: str, is_first: bool = False, is_last: bool = False) -> None:
        """Where a stage stands: overwrites itself on a terminal; elsewhere a line now and then, the first and the last.

        The last one stays on a terminal too.
        """
        if self.quiet:
            return
        if self.is_terminal and not is_last:
            _write(sys.stderr, "\r" + text.ljust(self._status_width))
            self._status_width = len(text)
            return
        now = time.monotonic()
        if is_first or is_last or now - self._last_status >= PLAIN_INTERVAL:
            if not is_last:
                self._last_status = now
            self.note(text)

    def result(self, report: Mapping[str, Any]) -> None:
        """The one JSON object, with --json."""
        if self.as_json:
            _write(sys.stdout, json.dumps(report, ensure_ascii=True) + "\n")

    def fail(self, error: HyvError, report: Mapping[str, Any] | None = None, is_told: bool = False) -> int:
        """Tell about an error (unless people were told), with what was achieved before it. Returns the exit code."""
        if self.debug:
            self.note("".join(traceback.format_exception(error)).rstrip())
        if self.as_json:
            self.result({"error": describe(error), **(report or {})})
        elif not is_told:
            self.note(f"Error: {error}")
        return error.exit_code

    def abandon(self) -> int:
        """stdout was closed by its reader: make Python's own flush at exit a quiet one."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

    def close(self) -> None:
        """Leave the line and the logging as they were."""
        self._clear_status()
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._level_before)

    def _clear_status(self) -> None:
        if self._status_width:
            _write(sys.stderr, "\r" + " " * self._status_width + "\r")
            self._status_width = 0


class _LogHandler(logging.Handler):
    """The library's log lines, between the progress."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.note(f"{record.levelname.capitalize()}: {record.getMessage()}")


def describe(error: HyvError) -> dict[str, str]:
    """An error for machines."""
    return {"code": error.code, "message": str(error)}


def unexpected(error: Exception) -> HyvError:
    """What to say about an error that nobody planned for. A package that is missing mostly means another Python."""
    told: HyvError
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(LIBRARY):
        told = MissingPackage(
            f"The package {error.name} is not installed for {sys.executable}. Run this with a Python that has it, such "
            "as ComfyUI's, or install it; `python -m hyvideo_lib doctor` lists all that is missing."
        )
    else:
        told = RunFailed(
            f"{type(error).__name__}: {error}. This should not have happened. Run again with --debug and report what "
            "it prints, together with the output of `hyvideo doctor`."
        )
    told.__cause__ = error
    return told


def _write(stream: TextIO, text: str) -> None:
    """Write and flush; what the stream's encoding lacks becomes an escape."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()

"""`hyvideo bench`: the benchmarks of a checkout; they are not installed with the library."""

from __future__ import annotations

import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from ..errors import Interrupted, UnsupportedFile
from .arguments import Parser
from .report import Console

SUMMARY = "Run the benchmarks in benchmarks/ (JSON lines); all options are theirs."
ROOT = Path(__file__).resolve().parents[2]
FOLDER = "benchmarks"

# Their own process, so that peak memory is theirs; from the checkout's root, whatever the current folder holds.
_START = "import runpy, sys; sys.path[0] = {root!r}; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"


def add_arguments(parser: Parser) -> None:
    """Never asked: `run_arguments` is given the words as they are."""


def run(options: Namespace, console: Console) -> int:
    return run_arguments([])


def run_arguments(arguments: list[str], root: Path = ROOT) -> int:
    """Run `benchmarks` of the checkout with these words; its exit code. Raises UnsupportedFile, Interrupted."""
    if not (root / FOLDER / "__main__.py").is_file():
        raise UnsupportedFile(
            f"There is no folder {FOLDER} beside the library ({root}): the benchmarks come with the source repository, "
            "not with an installed package. Clone it and run `python -m hyvideo_lib bench` there."
        )
    command = [sys.executable, "-c", _START.format(root=str(root), name=FOLDER), *arguments]
    process = subprocess.Popen(command)  # noqa: S603 (our own interpreter)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # Ctrl-C went to it as well; let it end in its own way
        code = process.wait()
        raise Interrupted("The benchmarks were stopped.") from None
    if code in (-signal.SIGINT, -signal.SIGTERM):
        raise Interrupted("The benchmarks were stopped.")
    return code if code >= 0 else 1

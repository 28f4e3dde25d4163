"""The command line: `hyvideo VERB`, or `python -m hyvideo_lib VERB`.

What it promises to scripts: with --json exactly one JSON object on stdout (bench: one a line), everything else on
stderr; exit code 0 ok, 2 bad input, 3 interrupted, 4 out of memory, 1 otherwise; an error is one paragraph, or
{"error": {"code", "message"}}.

Nothing heavy is imported until a verb runs, so that --help and a wrong option answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from ..errors import HyvError, Interrupted
from . import bench, convert, demo, doctor, generate, inspect, lora_merge, plan
from .arguments import Parser
from .interrupt import AT_ONCE, Stopper, handle_signals, telling_stops
from .report import Console, unexpected

VERBS = {
    "demo": demo,
    "generate": generate,
    "inspect": inspect,
    "convert": convert,
    "lora-merge": lora_merge,
    "plan": plan,
    "doctor": doctor,
    "bench": bench,
}
"""Each module has SUMMARY, add_arguments(parser) and run(options, console) -> exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console(as_json="--json" in arguments, debug="--debug" in arguments)
    try:
        with handle_signals(signal.SIGINT) as stopper, telling_stops():
            return _run_to_its_end(arguments, console, stopper)
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except HyvError as error:
        return console.fail(error)
    except BrokenPipeError:  # whoever read our output has seen enough
        return console.abandon()
    except Exception as error:
        return console.fail(unexpected(error))
    finally:
        console.close()


def _run_to_its_end(arguments: list[str], console: Console, stopper: Stopper) -> int:
    """The verb's exit code, or that of an interruption which it did not hear."""
    if stopper.is_process:
        stopper.leave = lambda: os._exit(console.fail(Interrupted(AT_ONCE)))
    try:
        code = _run(arguments, console)
    finally:
        stopper.is_over = True
    if stopper.is_lost and code != Interrupted.exit_code:
        console.note(f"Error: {AT_ONCE}")
        return Interrupted.exit_code
    return code


def _run(arguments: list[str], console: Console) -> int:
    if arguments[:1] == ["bench"]:  # its options are the benchmarks' own
        return bench.run_arguments(arguments[1:])
    options = build_parser().parse_args(arguments)
    console.configure(quiet=options.quiet, verbose=options.verbose)
    code: int = VERBS[options.verb].run(options, console)
    return code


def build_parser() -> Parser:
    """The whole command line."""
    from .. import __version__

    parser = Parser(prog="hyvideo", description="HunyuanVideo: text to video.")
    parser.add_argument("--version", action="version", version=f"hyvideo {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verb_parser = verbs.add_parser(name, help=verb.SUMMARY, description=verb.SUMMARY)
        verb.add_arguments(verb_parser)
        verb_parser.add_common()
    return parser

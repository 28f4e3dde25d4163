"""`python -m hyvideo_lib VERB`, and the command `hyvideo`: the command line as a process of its own."""

import os
import signal
import sys

INTERRUPTED = 3
"""errors.Interrupted.exit_code, known before anything is imported."""


def command() -> None:
    """Run the command line and exit with its code, which no Ctrl-C changes once there is one."""
    try:
        from .cli import main
        from .cli.interrupt import Stopper
    except KeyboardInterrupt:
        sys.stderr.write("Error: Stopped at once.\n")
        sys.exit(INTERRUPTED)
    signal.signal(signal.SIGINT, Stopper(is_process=True))
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == INTERRUPTED:
        # An interrupt within the code that an import makes and runs is remembered: Python would end itself by it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()

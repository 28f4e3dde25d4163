"""`python -m hyvideo_lib VERB`, and the command `hyvideo`: the command line as a process of its own."""

import signal
import sys


def command() -> None:
    """Run the command line and exit with its code, which no Ctrl-C changes once there is one."""
    try:
        from .cli import main
        from .cli.interrupt import Stopper
    except KeyboardInterrupt:
        sys.stderr.write("Error: Stopped at once.\n")
        sys.exit(3)
    signal.signal(signal.SIGINT, Stopper(is_process=True))
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exec("")  # noqa: S102 (by a KeyboardInterrupt that once passed an exec Python would end itself)
    sys.exit(code)


if __name__ == "__main__":
    command()

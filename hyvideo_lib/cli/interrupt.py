"""Ctrl-C: the first asks the run to stop where it can, the second stops it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTICE = b"\nStopping; press Ctrl-C again to stop at once.\n"


@contextmanager
def stop_on_signals(cancel: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM call `cancel`, and raise KeyboardInterrupt when they come again.

    Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        cancel()
        # Straight to the descriptor: the interrupted code may be inside a write to the stream.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, NOTICE)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

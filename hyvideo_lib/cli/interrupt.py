"""Ctrl-C: the first asks the run to stop where it can, the second stops it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import Interrupted

NOTICE = b"\nStopping; press Ctrl-C again to stop at once.\n"
AT_ONCE = "Stopped at once; nothing half-written was kept."


class Stopper:
    """The handler of a command's signals.

    cancel: asks the work to stop; without it a signal raises KeyboardInterrupt, as a second one always does.
    leave: ends the process, and is called instead while modules are imported: there KeyboardInterrupt breaks what is
    half made, or is swallowed. Without it the signal waits. has_raised: whether a KeyboardInterrupt was raised.
    is_over: signals change nothing any more, as what is left is to tell how it ended.
    """

    def __init__(self, is_process: bool = False) -> None:
        """is_process: whether the command is all that this process does, so that it may be left."""
        self.is_process = is_process
        self.cancel: Callable[[], None] | None = None
        self.leave: Callable[[], None] | None = None
        self.is_asked = self.has_raised = self.is_over = False

    @property
    def is_lost(self) -> bool:
        """Whether a signal came that no work was asked to hear, or whose KeyboardInterrupt a library may have eaten."""
        return self.has_raised or (self.is_asked and self.cancel is None)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_over:
            return
        if self.is_asked or (self.cancel is None and not _is_importing(frame)):
            self.is_asked = self.has_raised = True
            raise KeyboardInterrupt
        self.is_asked = True
        end = self.cancel or self.leave
        if end:
            end()
        # Straight to the descriptor: the interrupted code may be inside a write to the stream.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, NOTICE)


@contextmanager
def handle_signals(*numbers: int) -> Iterator[Stopper]:
    """Within the block these signals go to one Stopper: to that of a block around it if SIGINT has one already.

    Changes nothing outside the main thread, where Python handles no signals.
    """
    stopper = _current() or Stopper()
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stopper) for number in numbers} if is_main else {}
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signals(cancel: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM call `cancel`, and raise KeyboardInterrupt when they come again.

    Raises KeyboardInterrupt if a signal before the block was lost. Does nothing outside the main thread.
    """
    with handle_signals(signal.SIGINT, signal.SIGTERM) as stopper:
        if stopper.is_lost:
            raise KeyboardInterrupt
        stopper.cancel = cancel
        try:
            yield
        finally:
            stopper.is_over = True


@contextmanager
def telling_stops() -> Iterator[None]:
    """Raises Interrupted for a KeyboardInterrupt within, and for what fails after a signal that was lost."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(AT_ONCE) from error
    except Exception as error:
        stopper = _current()
        if stopper and stopper.is_lost and not isinstance(error, Interrupted):
            raise Interrupted(AT_ONCE) from error
        raise


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _current() -> Stopper | None:
    handler = signal.getsignal(signal.SIGINT)
    return handler if isinstance(handler, Stopper) else None

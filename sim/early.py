"""The first moments of a command: Ctrl-C while it imports what it needs, and nothing has begun."""

import os
import signal
from types import FrameType

from engine.pipes import let_readers_leave

INTERRUPTED = 130


def leave_on_ctrl_c() -> None:
    """From now on Ctrl-C ends the process at once and without a word, where it would raise KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def begin() -> None:
    """A command begins, in a process of its own: Ctrl-C is its own matter, and its readers may leave."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    let_readers_leave()


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)

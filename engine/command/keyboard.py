"""A key pressed in a terminal, without the return key after it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import select
from threading import Event
from typing import Protocol


class Keys(Protocol):
    """Waits for a key."""

    def pressed(self, within_s: float) -> str:
        """The key that is pressed first; "" if none is in that time."""


@contextmanager
def keys() -> Iterator[Keys]:
    """Those of the terminal until the block ends; where there is no terminal nobody presses any."""
    try:
        import termios  # noqa: PLC0415  not on every system
        import tty  # noqa: PLC0415
    except ImportError:
        yield NoKeys()
        return
    if not sys.stdin.isatty():
        yield NoKeys()
        return
    at = sys.stdin.fileno()
    before = termios.tcgetattr(at)
    try:
        tty.setcbreak(at)  # Ctrl-C stays what it is
        yield TerminalKeys(at)
    finally:
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(at, termios.TCSADRAIN, before)


class TerminalKeys:
    """Those of the terminal with that file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._at = descriptor

    def pressed(self, within_s: float) -> str:
        ready, _, _ = select([self._at], [], [], within_s)
        if not ready:
            return ""
        return os.read(self._at, 1).decode("ascii", "replace") or "q"  # the terminal has gone


class NoKeys:
    """Time passes, and nobody presses a key."""

    def pressed(self, within_s: float) -> str:
        Event().wait(within_s)
        return ""

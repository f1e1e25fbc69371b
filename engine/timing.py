"""What the engine knows of time: the clock that it is given, and what that hands out.

Classes to derive from and not protocols, because a method of a class that the compiler knows is found in a tenth of
the time that its name takes.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from engine.native import mypyc_attr

T = TypeVar("T")


@mypyc_attr(allow_interpreted_subclasses=True)
class Signal:
    """Something that happens once and then stays so. Setting it twice is allowed and changes nothing.

    `is_set`: whether it has happened.
    """

    __slots__ = ("is_set",)

    is_set: bool

    def set(self) -> None:
        """Let it happen: all who wait go on, in the order in which they came. Never blocks."""
        raise NotImplementedError

    def wait(self) -> Awaitable[None]:
        """What returns when it has happened, at once if it has already."""
        raise NotImplementedError


class Timer(Protocol):
    """A callback that is due at a time."""

    def cancel(self) -> None:
        """Do not call it after all. Harmless when it has been called."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Clock:
    """What the engine knows of time and of running things side by side.

    `epoch_ns`: nanoseconds from 1970 (UTC) to the clock's own zero, for hours and days of quotas; 0 if it is virtual.
    """

    epoch_ns: int

    def now_ns(self) -> int:
        """Nanoseconds since the clock's own zero; never goes back."""
        raise NotImplementedError

    async def sleep(self, delay_ns: int) -> None:
        """Return `delay_ns` (>= 0) later."""
        raise NotImplementedError

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, `delay_ns` (>= 0) later, unless the timer is cancelled before."""
        raise NotImplementedError

    def call_last(self, delay_ns: int, callback: Callable[[], None], rank: int) -> Timer:
        """Like `call_later`, but after all else that is due at that nanosecond, and in the order of `rank` (>= 0).

        Only a virtual clock can keep that order; on the wall clock no two things happen at once.
        """
        raise NotImplementedError

    def is_past(self, rank: int) -> bool:
        """Whether a callback of `call_last` with this rank or a higher one has been called at this nanosecond."""
        raise NotImplementedError

    def signal(self) -> Signal:
        """A new signal, not set."""
        raise NotImplementedError

    def spawn(self, work: Coroutine[Any, Any, Any]) -> object:
        """Run `work` beside the caller. An exception that leaves it ends the program: it is a defect."""
        raise NotImplementedError

    def launch(self, work: Coroutine[Any, Any, Any]) -> None:
        """The same where nobody waits for its end; it may begin at once. A third of the price on a virtual clock."""
        raise NotImplementedError

    async def compute(self, work: Callable[[], T]) -> tuple[T, int]:
        """Do blocking `work`; its result and how long it took, in ns.

        On the wall clock it runs in a worker thread, so that the loop stays free. On a virtual clock it runs
        at once, and the time it took on the real machine then passes on the virtual one (hardware in the
        loop).
        """
        raise NotImplementedError

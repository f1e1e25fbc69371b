"""Time: the one place where the engine meets a clock, and the seam at which a simulator takes over.

Everything else in the engine awaits only what stands here (and what is built from it), so the same coroutines
run under asyncio on the wall clock and under SimPy on a virtual one. Time inside is integer nanoseconds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_ns(seconds: float) -> int:
    """Seconds, as configuration and reports speak, to integer nanoseconds, rounded to the nearest."""
    return round(seconds * NS_PER_S)


def utc_now() -> datetime:
    """The date, for the name of a run folder and its manifest; never for a decision or a digest."""
    return datetime.now(UTC)


def utc_text(unix_ns: int) -> str:
    """Nanoseconds from 1970 as a date and time of UTC, to the millisecond: 2027-01-01T00:00:00.000Z."""
    moment = EPOCH + timedelta(milliseconds=unix_ns // NS_PER_MS)  # `fromtimestamp` would round a float
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def unix_ns_of(text: str) -> int:
    """Nanoseconds from 1970 to a date, or date and time, of ISO 8601; of UTC where no zone is given.

    Raises ValueError.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def stopwatch_ns() -> int:
    """A monotonic reading of the real machine's time, to measure real work with."""
    return time.perf_counter_ns()


def processor_ns() -> int:
    """The processor's time that this thread has had, to tell real work from waiting for others to be done."""
    return time.thread_time_ns()


class Signal(Protocol):
    """Something that happens once and then stays so. Setting it twice is allowed and changes nothing."""

    @property
    def is_set(self) -> bool:
        """Whether it has happened."""

    def set(self) -> None:
        """Let it happen: all who wait go on, in the order in which they came. Never blocks."""

    def wait(self) -> Awaitable[None]:
        """What returns when it has happened, at once if it has already."""


class Timer(Protocol):
    """A callback that is due at a time."""

    def cancel(self) -> None:
        """Do not call it after all. Harmless when it has been called."""


class Clock(Protocol):
    """What the engine knows of time and of running things side by side."""

    @property
    def epoch_ns(self) -> int:
        """Nanoseconds from 1970 (UTC) to the clock's own zero; 0 on a virtual clock. For hours and days of quotas."""

    def now_ns(self) -> int:
        """Nanoseconds since the clock's own zero; never goes back."""

    async def sleep(self, delay_ns: int) -> None:
        """Return `delay_ns` (>= 0) later."""

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, `delay_ns` (>= 0) later, unless the timer is cancelled before."""

    def call_last(self, delay_ns: int, callback: Callable[[], None], rank: int) -> Timer:
        """Like `call_later`, but after all else that is due at that nanosecond, and in the order of `rank` (>= 0).

        Only a virtual clock can keep that order; on the wall clock no two things happen at once.
        """

    def is_past(self, rank: int) -> bool:
        """Whether a callback of `call_last` with this rank or a higher one has been called at this nanosecond."""

    def signal(self) -> Signal:
        """A new signal, not set."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> object:
        """Run `work` beside the caller. An exception that leaves it ends the program: it is a defect."""

    def launch(self, work: Coroutine[Any, Any, Any]) -> None:
        """The same where nobody waits for its end; it may begin at once. A third of the price on a virtual clock."""

    async def compute(self, work: Callable[[], T]) -> tuple[T, int]:
        """Do blocking `work`; its result and how long it took, in ns.

        On the wall clock it runs in a worker thread, so that the loop stays free. On a virtual clock it runs
        at once, and the time it took on the real machine then passes on the virtual one (hardware in the
        loop).
        """


class WallSignal:
    """A signal on an asyncio loop: most have one waiter or none, which costs less than an event."""

    __slots__ = ("_loop", "_waiters", "is_set")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.is_set = False
        self._waiters: list[asyncio.Future[None]] | None = None

    def set(self) -> None:
        self.is_set = True
        if self._waiters is not None:
            waiters, self._waiters = self._waiters, None
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self) -> None:
        if self.is_set:
            return
        waiter = self._loop.create_future()
        if self._waiters is None:
            self._waiters = [waiter]
        else:
            self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if self._waiters is not None and waiter.cancelled():  # one that is forgotten must not pile up
                self._waiters.remove(waiter)


class WallClock:
    """The engine's clock in production: asyncio and the machine's monotonic time. Made inside a running loop."""

    now_ns = staticmethod(time.monotonic_ns)  # whose zero is the machine's: a request asks a dozen times

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks only weakly
        self.epoch_ns = time.time_ns() - time.monotonic_ns()
        self._is_closed = False

    async def sleep(self, delay_ns: int) -> None:
        await asyncio.sleep(delay_ns / NS_PER_S)

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(delay_ns / NS_PER_S, self._call, callback)

    def call_last(self, delay_ns: int, callback: Callable[[], None], rank: int) -> Timer:
        return self.call_later(delay_ns, callback)

    def is_past(self, rank: int) -> bool:
        return False

    def signal(self) -> Signal:
        return WallSignal(self._loop)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> object:
        if self._is_closed:
            work.close()
            return None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def launch(self, work: Coroutine[Any, Any, Any]) -> None:
        self.spawn(work)

    async def compute(self, work: Callable[[], T]) -> tuple[T, int]:
        def timed() -> tuple[T, int]:
            begun_ns = stopwatch_ns()
            return work(), stopwatch_ns() - begun_ns

        return await asyncio.to_thread(timed)

    async def close(self) -> None:
        """Cancel what still runs beside (replica loops, health probes) and wait until it is gone.

        Nothing begins from now on: no timer calls back any more, and what is spawned ends before it has begun.
        """
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _call(self, callback: Callable[[], None]) -> None:
        if not self._is_closed:
            callback()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "spawned work failed", "exception": error})

"""Time: the one place where the engine meets a clock, and the seam at which a simulator takes over.

Everything else in the engine awaits only what stands here (and what is built from it), so the same coroutines
run under asyncio on the wall clock and under SimPy on a virtual one. Time inside is integer nanoseconds.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from engine.timing import Clock, Signal, Timer

__all__ = (
    "EPOCH",
    "NS_PER_MS",
    "NS_PER_S",
    "Clock",
    "Signal",
    "Timer",
    "WallClock",
    "processor_ns",
    "stopwatch_ns",
    "to_ns",
    "unix_ns_of",
    "utc_now",
    "utc_text",
)

T = TypeVar("T")

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
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


class WallSignal(Signal):
    """A signal on an asyncio loop: most have one waiter or none, which costs less than an event."""

    __slots__ = ("_loop", "_waiters")

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


class WallClock(Clock):
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

"""Transfers in modelled time, over all ways: so many at a time on each, reads before writes.

Nobody waits for the end of a write, so it is no event on the clock: who looks at what is written, or has something
to add, first works off what is over by then, in the order of time (`catch_up`). A read calls back at its end.
"""

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

from engine.cache.ways import Way
from engine.clock import Clock

Over = Callable[[Any, int], None]
"""Told what was written, and when that was over; the moment may have passed."""


class Crossings:
    """Who is on which way until when."""

    __slots__ = ("_clock", "_ends", "_number", "_put_off", "_put_off_ns")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: list[tuple[int, int, Way, Over, Any]] = []  # of writes
        self._number = 0  # what ends at the same time is over in the order in which it began
        self._put_off: Callable[[int], None] | None = None
        self._put_off_ns = 0

    def catch_up(self, now_ns: int) -> None:
        """Let happen what has happened by now."""
        if self._put_off is not None and now_ns >= self._put_off_ns:
            begin, self._put_off = self._put_off, None
            begin(self._put_off_ns)
        ends = self._ends
        while ends and ends[0][0] <= now_ns:
            at_ns, _, way, over, what = heappop(ends)
            if way.reads or way.writes:
                self._next(way, at_ns)
            else:
                way.busy -= 1
            over(what, at_ns)

    def after(self, now_ns: int, then: Callable[[int], None]) -> None:
        """Call when this moment is over, before all that ends later. One at a time; whoever asks has caught up."""
        self._put_off, self._put_off_ns = then, now_ns + 1

    def write(self, way: Way, size_bytes: int, over: Over, what: Any, at_ns: int) -> None:
        """Let so much cross, asked for at a time that may have passed: it takes its turn as of then."""
        if way.busy < way.concurrency:
            way.busy += 1
            self._number += 1
            heappush(self._ends, (at_ns + way.modelled_ns(size_bytes), self._number, way, over, what))
        else:
            way.writes.append((at_ns, partial(self._begin_write, way, size_bytes, over, what)))

    def read(self, way: Way, size_bytes: int, then: Callable[[], None]) -> None:
        """Let so much cross from now on, and call back when it is there. Whoever asks has caught up."""
        now_ns = self._clock.now_ns()
        if way.busy < way.concurrency:
            way.busy += 1
            self._begin_read(way, size_bytes, then, now_ns)
        else:
            way.reads.append((now_ns, partial(self._begin_read, way, size_bytes, then)))
            self._wake(way)

    def _begin_write(self, way: Way, size_bytes: int, over: Over, what: Any, at_ns: int) -> None:
        self._number += 1
        heappush(self._ends, (at_ns + way.modelled_ns(size_bytes), self._number, way, over, what))

    def _begin_read(self, way: Way, size_bytes: int, then: Callable[[], None], at_ns: int) -> None:
        late_ns = self._clock.now_ns() - at_ns  # the wall clock calls some time after who waits could go
        delay_ns = max(0, way.read_ns(size_bytes) - late_ns)
        self._clock.call_later(delay_ns, partial(self._has_read, way, then))

    def _has_read(self, way: Way, then: Callable[[], None]) -> None:
        now_ns = self._clock.now_ns()
        self.catch_up(now_ns)
        if way.reads or way.writes:
            self._next(way, now_ns)
        else:
            way.busy -= 1
        then()

    def _next(self, way: Way, at_ns: int) -> None:
        """Let the next one take a place that is free now: a read if there is one."""
        begun_ns, begin = (way.reads or way.writes).popleft()
        way.waited_ns += at_ns - begun_ns
        begin(at_ns)

    def _wake(self, way: Way) -> None:
        """Catch up when the next write is off a way on which a read waits. Other reads wake it by themselves."""
        ends = [at_ns for at_ns, _, each, _, _ in self._ends if each is way]
        if way.reads and ends:
            delay_ns = max(0, min(ends) - self._clock.now_ns())
            self._clock.call_later(delay_ns, partial(self._wake_up, way))

    def _wake_up(self, way: Way) -> None:
        self.catch_up(self._clock.now_ns())
        self._wake(way)

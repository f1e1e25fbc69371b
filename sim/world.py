"""The virtual clock: SimPy behind the engine's own protocol, so that the same coroutines run on virtual time."""

import types
from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from typing import Any, TypeVar, cast

import simpy

from engine.clock import Signal, Timer, stopwatch_ns

T = TypeVar("T")

SOON = 1
"""SimPy's own priority of what is due now, first come, first served."""
LATE = 1_000
"""Behind all priorities of SimPy: for what has to wait until everything else at a nanosecond has happened."""


@types.coroutine
def occurs(event: Any) -> Generator[Any, Any, Any]:
    """Wait for a SimPy event, or for what looks like one, inside a coroutine."""
    return (yield event)


class Call:
    """A callback in the queue. One that is cancelled stays there, and is empty."""

    __slots__ = ("callback",)

    callback: Callable[[], None] | None  # set where it is made: a constructor would cost more than all else

    def cancel(self) -> None:
        self.callback = None


class World(simpy.Environment):
    """SimPy's own queue of events, in which our own are bare callbacks: a third of what an event costs."""

    def __init__(self) -> None:
        super().__init__(initial_time=0)
        self.is_over = False  # whether what happens now is the last thing to happen
        self.late_ns: float = -1  # when a late call was made last
        self.late_priority = -1  # the highest of those that were made then

    def advance(self, most: int) -> int:
        """Process up to `most` events, and say how many there were. `step` for each, without its detours."""
        queue: list[Any] = self._queue
        for count in range(most):
            if not queue or self.is_over:
                return count
            self._now, priority, _, event = heappop(queue)
            if type(event) is Call:
                callback = event.callback
                if callback is not None:
                    if priority >= LATE and (self.late_ns != self._now or priority > self.late_priority):
                        self.late_ns, self.late_priority = self._now, priority
                    callback()
                continue
            callbacks, event.callbacks = event.callbacks, None
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value
        return most

    def step(self) -> None:
        """Process the next event. Raises EmptySchedule when there is none."""
        queue: list[Any] = self._queue
        if not queue or type(queue[0][3]) is not Call:
            super().step()
            return
        self._now, priority, _, call = heappop(queue)
        if call.callback is not None:
            if priority >= LATE and (self.late_ns != self._now or priority > self.late_priority):
                self.late_ns, self.late_priority = self._now, priority
            call.callback()

    def call(self, delay_ns: int, callback: Callable[[], None], priority: int) -> Call:
        """Have something called later."""
        call = Call()
        call.callback = callback
        heappush(self._queue, (self._now + delay_ns, priority, next(self._eid), call))  # type: ignore[misc]
        return call

    def put(self, event: Any, delay_ns: int = 0) -> None:
        """Let an event happen later, or what looks like one."""
        heappush(self._queue, (self._now + delay_ns, SOON, next(self._eid), event))  # type: ignore[misc]


class Happening:
    """What a coroutine can wait for: as much of a SimPy event as who waits for one looks at."""

    __slots__ = ("callbacks",)

    _ok = True
    _value = None

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Any], None]] | None = []


class SimSignal(Happening):
    """The engine's signal: who waits goes on at the nanosecond at which it is set, in the order of coming."""

    __slots__ = ("_world", "is_set")

    def __init__(self, world: World) -> None:
        self.callbacks = []
        self.is_set = False
        self._world = world

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            if self.callbacks:
                self._world.put(self)
            else:
                self.callbacks = None

    @types.coroutine
    def wait(self) -> Generator[Any, Any, None]:
        if self.callbacks is not None:
            yield self


class Task:
    """A coroutine that runs beside others, at a third of what a SimPy process costs; nobody can interrupt it."""

    __slots__ = ("_clock", "work")

    def __init__(self, clock: "SimClock", work: Coroutine[Any, Any, Any]) -> None:
        self.work = work
        self._clock = clock

    def resume(self, event: Any) -> None:
        """Go on after an event, up to the next one that is still to come."""
        work = self.work
        try:
            while True:
                if isinstance(event, Happening):
                    event = work.send(None)
                else:
                    event = work.send(event._value) if event._ok else work.throw(event._value)
                if event.callbacks is not None:
                    event.callbacks.append(self.resume)
                    return
        except StopIteration:
            self._clock.ended(self)
        except BaseException:
            self._clock.ended(self)
            raise


BEGUN = Happening()
"""What a task goes on after when it begins."""


class SimClock:
    """The engine's clock over SimPy: the same coroutines, on virtual nanoseconds."""

    def __init__(self) -> None:
        self.env = World()
        self._running: dict[object, Coroutine[Any, Any, Any]] = {}  # by what runs it

    @property
    def epoch_ns(self) -> int:
        return 0

    def now_ns(self) -> int:
        return self.env._now  # type: ignore[return-value]

    async def sleep(self, delay_ns: int) -> None:
        if delay_ns < 0:
            raise ValueError(f"the delay is {delay_ns} ns, but must be at least 0")
        event = Happening()
        self.env.put(event, delay_ns)
        await occurs(event)

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        return self.env.call(delay_ns, callback, SOON)

    def call_last(self, delay_ns: int, callback: Callable[[], None], rank: int) -> Timer:
        return self.env.call(delay_ns, callback, LATE + rank)

    def is_past(self, rank: int) -> bool:
        world = self.env
        return world.late_priority >= LATE + rank and world.late_ns == self.now_ns()

    def signal(self) -> Signal:
        return SimSignal(self.env)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> simpy.Process:
        process = self.env.process(cast("Any", work))  # needs send and throw only; SimPy's types ask for more
        self._running[process] = work
        process.callbacks.append(self.ended)
        return process

    def launch(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` beside the caller, at once up to where it first waits. Nobody can wait for it."""
        task = Task(self, work)
        self._running[task] = work
        task.resume(BEGUN)

    async def compute(self, work: Callable[[], T]) -> tuple[T, int]:
        begun_ns = stopwatch_ns()
        result = work()
        duration_ns = stopwatch_ns() - begun_ns
        await self.sleep(duration_ns)
        return result, duration_ns

    def close(self) -> None:
        """End what still runs (replica loops, health probes): its `finally` blocks run now."""
        running, self._running = self._running, {}
        for work in running.values():
            work.close()

    def ended(self, work: object) -> None:
        """That task or process runs no more."""
        self._running.pop(work, None)

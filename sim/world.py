"""The virtual clock: SimPy behind the engine's own protocol, so that the same coroutines run on virtual time."""

from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, TypeVar, cast

import simpy

from engine.clock import stopwatch_ns
from sim.agenda import SOON, Agenda
from sim.heap import IS_PLAIN

T = TypeVar("T")


class World(simpy.Environment):
    """SimPy's face of an agenda: its processes and events happen among all else that is due there."""

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda
        super().__init__(initial_time=0)
        self._queue: list[Any]  # what SimPy itself is to process now

    @property
    def _now(self) -> int:
        return self.agenda.time_ns

    @_now.setter
    def _now(self, time_ns: int) -> None:
        self.agenda.time_ns = time_ns

    def schedule(self, event: simpy.Event, priority: int = SOON, delay: simpy.core.SimTime = 0) -> None:
        """Let an event happen later."""
        self.agenda.put(event, delay, priority)  # type: ignore[arg-type]  # all our times are whole

    def peek(self) -> simpy.core.SimTime:
        """When something is due next; infinity where nothing is."""
        next_ns = self.agenda.next_ns()
        return inf if next_ns is None else next_ns

    def step(self) -> None:
        """Process the next event. Raises EmptySchedule when there is none."""
        if self.agenda.next_ns() is not None:
            entry = self.agenda.make_call()
            if entry is None:
                return
            self._queue.append(entry)
        super().step()


class SimClock(Agenda):
    """The engine's clock over SimPy: the same coroutines, on virtual nanoseconds."""

    def __init__(self, *, is_plain: bool = IS_PLAIN) -> None:
        super().__init__(is_plain=is_plain)
        self.env = World(self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> simpy.Process:
        process = self.env.process(cast("Any", work))  # needs send and throw only; SimPy's types ask for more
        self.running[process] = work
        process.callbacks.append(self.ended)
        return process

    async def compute(self, work: Callable[[], T]) -> tuple[T, int]:
        begun_ns = stopwatch_ns()
        result = work()
        duration_ns = stopwatch_ns() - begun_ns
        await self.sleep(duration_ns)
        return result, duration_ns

    def close(self) -> None:
        """End what still runs (replica loops, health probes): its `finally` blocks run now."""
        running, self.running = self.running, {}
        for work in running.values():
            work.close()


NOBODYS = SimClock().signal()
"""The end of what nobody waits for."""

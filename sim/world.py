"""The virtual clock: SimPy behind the engine's own protocol, so that the same coroutines run on virtual time."""

import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar, cast

import simpy

from engine.clock import Signal, Timer, stopwatch_ns

T = TypeVar("T")


@types.coroutine
def occurs(event: simpy.Event) -> Generator[simpy.Event, Any, Any]:
    """Wait for a SimPy event inside a coroutine."""
    return (yield event)


class SimSignal:
    """The engine's signal as a SimPy event."""

    __slots__ = ("_event",)

    def __init__(self, env: simpy.Environment) -> None:
        self._event = simpy.Event(env)

    @property
    def is_set(self) -> bool:
        return self._event.triggered

    def set(self) -> None:
        if not self._event.triggered:
            self._event.succeed()

    async def wait(self) -> None:
        await occurs(self._event)


class SimTimer:
    """A callback on a SimPy timeout. SimPy cannot take an event back, so a cancelled one fires into the void."""

    __slots__ = ("_callback",)

    def __init__(self, timeout: simpy.Timeout, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback
        timeout.callbacks.append(self._fire)

    def cancel(self) -> None:
        self._callback = None

    def _fire(self, _: simpy.Event) -> None:
        if self._callback is not None:
            self._callback()


class SimClock:
    """The engine's clock over SimPy: the same coroutines, on virtual nanoseconds. 0.8 us an event."""

    def __init__(self) -> None:
        self.env = simpy.Environment(initial_time=0)
        self._running: dict[int, Coroutine[Any, Any, Any]] = {}
        self._spawned = 0

    @property
    def epoch_ns(self) -> int:
        return 0

    def now_ns(self) -> int:
        return cast("int", self.env.now)  # stays an int while every delay is one

    async def sleep(self, delay_ns: int) -> None:
        await occurs(simpy.Timeout(self.env, delay_ns))

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        return SimTimer(simpy.Timeout(self.env, delay_ns), callback)

    def signal(self) -> Signal:
        return SimSignal(self.env)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> simpy.Process:
        self._spawned += 1
        self._running[self._spawned] = work
        process = self.env.process(cast("Any", work))  # needs send and throw only; SimPy's types ask for more
        process.callbacks.append(partial(self._ended, self._spawned))
        return process

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

    def _ended(self, number: int, _: simpy.Event) -> None:
        self._running.pop(number, None)

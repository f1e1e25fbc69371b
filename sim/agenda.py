"""What happens when: one queue for SimPy's events and for our own bare callbacks, which cost a third of an event.

Everything that a request asks of virtual time passes here, so `python -m engine compile` takes it too. SimPy's
own classes, which cannot, look at the same queue (`sim/world.py`).
"""

from collections.abc import Callable, Coroutine, Generator, Sized
from heapq import heappop, heappush
from itertools import count
from typing import Any, ClassVar, Final

from engine.timing import Clock, Signal
from sim.heap import IS_PLAIN, Heap

SOON: Final = 1
"""SimPy's own priority of what is due now, first come, first served."""
LATE: Final = 1_000
"""Behind all priorities of SimPy: for what has to wait until everything else at a nanosecond has happened."""

Entry = tuple[int, int, int, Any]
"""When it is due, in ns, its priority, a number that breaks ties; a SimPy event, what looks like one, or a `Call`."""


class Call:
    """A callback in the queue. One that is cancelled stays there, and is empty."""

    __slots__ = ("callback",)

    callback: Callable[[], None] | None  # set where it is made: a constructor would cost more than all else

    def cancel(self) -> None:
        self.callback = None


class Happening(Signal):
    """What a coroutine can wait for: as much of a SimPy event as who waits for one looks at."""

    __slots__ = ("callbacks",)

    _ok: ClassVar[bool] = True
    _value: ClassVar[None] = None

    def __init__(self) -> None:
        self.callbacks: list[Any] | None = []  # tasks, and what is called with it

    def __await__(self) -> Generator[Any, Any, None]:
        if self.callbacks is not None:
            yield self


class Task:
    """A coroutine that runs beside others, at a third of what a SimPy process costs; nobody can interrupt it."""

    __slots__ = ("_agenda", "_steps", "_work")

    def __init__(self, agenda: "Agenda", work: Coroutine[Any, Any, Any]) -> None:
        self._agenda = agenda
        self._work = work
        self._steps: Any = work.__await__()  # to ask it for the next one takes half of what `send` does

    def __call__(self, event: Any) -> None:
        """The same where SimPy's own loop processes what it waits for."""
        self.resume(event)

    def resume(self, event: Any) -> None:
        """Go on after an event, up to the next one that is still to come."""
        try:
            while True:
                if isinstance(event, Happening):
                    event = next(self._steps, self)
                    if event is self:  # that was the last one
                        break
                else:
                    work = self._work
                    event = work.send(event._value) if event._ok else work.throw(event._value)
                if isinstance(event, Happening):
                    if event.callbacks is not None:
                        event.callbacks.append(self)
                        return
                elif event.callbacks is not None:
                    event.callbacks.append(self.resume)
                    return
        except StopIteration:
            pass
        except BaseException:
            self._agenda.ended(self)
            raise
        self._agenda.ended(self)


BEGUN = Happening()
"""What a task goes on after when it begins."""


class Agenda(Clock):
    """The queue, the time, and what runs."""

    def __init__(self, *, is_plain: bool = IS_PLAIN) -> None:
        """`is_plain`: keep the queue with `heapq` rather than with a heap of our own; in the same order."""
        self.epoch_ns = 0
        self.running: dict[object, Coroutine[Any, Any, Any]] = {}  # by what runs it
        self.time_ns = 0
        self._heap = None if is_plain else Heap()
        self._entries: list[Entry] = []  # a heap of `heapq`, where there is none of our own
        # of the numbers that break ties, in the order of coming
        self.next_number: Callable[[], int] = count().__next__
        self._number = 0  # the latest one, where the queue is a heap of our own
        self.is_over = False  # whether what happens now is the last thing to happen
        self.late_ns = -1  # when a late call was made last
        self.late_priority = -1  # the highest of those that were made then

    @property
    def queue(self) -> Sized:
        """All that is due."""
        return self._entries if self._heap is None else self._heap

    def now_ns(self) -> int:
        return self.time_ns

    def advance(self, most: int) -> int:
        """Process up to `most` events, and say how many there were. SimPy's `step` for each, without its detours."""
        heap, entries, pop = self._heap, self._entries, heappop
        event: Any
        priority: int
        for done in range(most):
            if self.is_over:
                return done
            if heap is not None:
                if not heap.size:
                    return done
                event = heap.take()
                self.time_ns = heap.time_ns
                priority = heap.priority
            elif entries:
                self.time_ns, priority, _, event = pop(entries)
            else:
                return done
            if type(event) is Call:
                self._make(event, priority)
                continue
            if isinstance(event, Happening):
                self._happen(event)
                continue
            callbacks, event.callbacks = event.callbacks, None
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value
        return most

    def next_ns(self) -> int | None:
        """When something is due next; None where nothing is."""
        if self._heap is not None:
            return self._heap.first_ns() if self._heap.size else None
        return self._entries[0][0] if self._entries else None

    def make_call(self) -> Entry | None:
        """Process what is due next, where that is a callback of ours; where it is not, take it out, and give it back.

        Raises IndexError where nothing is due.
        """
        heap = self._heap
        if heap is None:
            entry = heappop(self._entries)
        else:
            what = heap.take()
            entry = (heap.time_ns, heap.priority, heap.number, what)
        time_ns, priority, _, event = entry
        if type(event) is not Call:
            return entry
        self.time_ns = time_ns
        self._make(event, priority)
        return None

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Call:
        """Have something called later."""
        call = Call()
        call.callback = callback
        if self._heap is None:  # as `put` does, without a call for it
            heappush(self._entries, (self.time_ns + delay_ns, SOON, self.next_number(), call))
        else:
            self._number += 1
            self._heap.add(self.time_ns + delay_ns, SOON, self._number, call)
        return call

    def call_last(self, delay_ns: int, callback: Callable[[], None], rank: int) -> Call:
        """Have something called later, after all else at that nanosecond."""
        call = Call()
        call.callback = callback
        if self._heap is None:  # as `put` does, without a call for it
            heappush(self._entries, (self.time_ns + delay_ns, LATE + rank, self.next_number(), call))
        else:
            self._number += 1
            self._heap.add(self.time_ns + delay_ns, LATE + rank, self._number, call)
        return call

    def is_past(self, rank: int) -> bool:
        return self.late_priority >= LATE + rank and self.late_ns == self.time_ns

    async def sleep(self, delay_ns: int) -> None:
        if delay_ns < 0:
            raise ValueError(f"the delay is {delay_ns} ns, but must be at least 0")
        event = Happening()
        self.put(event, delay_ns, SOON)
        await event

    def put(self, event: Any, delay_ns: int, priority: int) -> None:
        """Let an event happen later, or what looks like one."""
        if self._heap is None:
            heappush(self._entries, (self.time_ns + delay_ns, priority, self.next_number(), event))
        else:
            self._number += 1
            self._heap.add(self.time_ns + delay_ns, priority, self._number, event)

    def launch(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` beside the caller, at once up to where it first waits. Nobody can wait for it."""
        task = Task(self, work)
        self.running[task] = work
        task.resume(BEGUN)

    def ended(self, work: object) -> None:
        """That task or process runs no more."""
        self.running.pop(work, None)

    def signal(self) -> "SimSignal":
        return SimSignal(self)

    def break_ties(self, draw_number: Callable[[], int]) -> None:
        """From now on, let the numbers that this draws say what happens first at one nanosecond. None comes twice.

        They may be larger than what a heap of our own holds.
        """
        heap, self._heap = self._heap, None
        while heap is not None and heap.size:
            what = heap.take()
            self._entries.append(
                (heap.time_ns, heap.priority, heap.number, what)
            )  # in order, which is a heap
        self.next_number = draw_number

    def _happen(self, event: Happening) -> None:
        callbacks, event.callbacks = event.callbacks, None
        if callbacks is not None:
            for callback in callbacks:
                if isinstance(callback, Task):
                    callback.resume(event)
                else:
                    callback(event)

    def _make(self, call: Call, priority: int) -> None:
        callback = call.callback
        if callback is not None:
            if priority >= LATE and (self.late_ns != self.time_ns or priority > self.late_priority):
                self.late_ns, self.late_priority = self.time_ns, priority
            callback()


class SimSignal(Happening):
    """The engine's signal: who waits goes on at the nanosecond at which it is set, in the order of coming."""

    __slots__ = ("_agenda",)

    def __init__(self, agenda: Agenda) -> None:
        self.callbacks = []
        self.is_set = False
        self._agenda = agenda

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            if self.callbacks:
                self._agenda.put(self, 0, SOON)
            else:
                self.callbacks = None

    def wait(self) -> Happening:
        return self

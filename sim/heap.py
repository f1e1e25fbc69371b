"""A heap of what is due, for where it is compiled: numbers are compared as numbers there, and not by way of tuples.

In plain Python `heapq`, which is written in C, takes a tenth of it; so both are there, and give the same order.
"""

from typing import Any, Final

from engine.native import extend, i64, vec

FIRST_PLACES: Final = 64


class Heap:
    """What is due, the first first: by its time, its priority at that time, and a number that breaks ties.

    Each has a place of its own for as long as it waits, and only places are moved: the first `size` of `_line` are a
    heap, those behind them are free. `time_ns`, `priority` and `number` are of what was taken last.
    """

    __slots__ = (
        "_line",
        "_numbers",
        "_priorities",
        "_times_ns",
        "_what",
        "number",
        "priority",
        "size",
        "time_ns",
    )

    def __init__(self) -> None:
        self.size = 0
        self.time_ns = 0
        self.priority = 0
        self.number = 0
        self._line = vec[i64]()
        self._times_ns = vec[i64]()
        self._priorities = vec[i64]()
        self._numbers = vec[i64]()
        self._what: list[Any] = []

    def __len__(self) -> int:
        return self.size

    def first_ns(self) -> int:
        """When the first is due. There has to be one."""
        return self._times_ns[self._line[0]]

    def add(self, time_ns: i64, priority: i64, number: i64, what: Any) -> None:
        """Put something more in. O(log n), and most often O(1)."""
        place: i64 = self.size
        self.size += 1
        if place == len(self._what):
            self._grow()
        line, times, priorities, numbers = self._line, self._times_ns, self._priorities, self._numbers
        own = line[place]
        times[own], priorities[own], numbers[own] = time_ns, priority, number
        self._what[own] = what
        while place > 0:
            above = (place - 1) >> 1
            other = line[above]
            if time_ns > times[other]:
                break
            if time_ns == times[other] and (
                priority > priorities[other] or (priority == priorities[other] and number > numbers[other])
            ):
                break
            line[place] = other
            place = above
        line[place] = own

    def take(self) -> Any:
        """Take out what is due first. O(log n). Raises IndexError where there is nothing."""
        if not self.size:
            raise IndexError("nothing is due")
        self.size -= 1
        size: i64 = self.size
        line, times, priorities, numbers = self._line, self._times_ns, self._priorities, self._numbers
        first, last = line[0], line[size]
        time_ns, priority, number = times[last], priorities[last], numbers[last]
        place: i64 = 0
        child: i64 = 1
        while child < size:
            lower = line[child]
            if child + 1 < size:
                other = line[child + 1]
                if times[other] < times[lower] or (
                    times[other] == times[lower]
                    and (
                        priorities[other] < priorities[lower]
                        or (priorities[other] == priorities[lower] and numbers[other] < numbers[lower])
                    )
                ):
                    child += 1
                    lower = other
            if time_ns < times[lower]:
                break
            if time_ns == times[lower] and (
                priority < priorities[lower] or (priority == priorities[lower] and number < numbers[lower])
            ):
                break
            line[place] = lower
            place = child
            child = 2 * place + 1
        line[place] = last
        line[size] = first
        self.time_ns, self.priority, self.number = times[first], priorities[first], numbers[first]
        what = self._what[first]
        self._what[first] = None
        return what

    def _grow(self) -> None:
        """Have twice as many places."""
        begin = len(self._what)
        more = max(begin, FIRST_PLACES)
        nothing = vec[i64]([0] * more)
        self._line = extend(self._line, range(begin, begin + more))
        self._times_ns = extend(self._times_ns, nothing)
        self._priorities = extend(self._priorities, nothing)
        self._numbers = extend(self._numbers, nothing)
        self._what += [None] * more


IS_PLAIN = hasattr(Heap.take, "__code__")
"""Whether this file runs as it is written."""

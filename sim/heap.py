"""A heap of what is due, for where it is compiled: numbers are compared as numbers there, and not by way of tuples.

In plain Python `heapq`, which is written in C, takes a tenth of it; so both are there, and give the same order.
"""

from typing import Any


class Due:
    """Something and when it is due: its time, its priority at that time, and a number that breaks ties."""

    __slots__ = ("number", "priority", "time_ns", "what")

    def __init__(self, time_ns: int, priority: int, number: int, what: Any) -> None:
        self.time_ns = time_ns
        self.priority = priority
        self.number = number
        self.what = what


def is_before(one: Due, other: Due) -> bool:
    """Whether it comes before another one."""
    if one.time_ns != other.time_ns:
        return one.time_ns < other.time_ns
    if one.priority != other.priority:
        return one.priority < other.priority
    return one.number < other.number


def add(heap: list[Due], due: Due) -> None:
    """Put something more in a heap. O(log n), and most often O(1)."""
    place = len(heap)
    heap.append(due)
    while place > 0:
        above = (place - 1) >> 1
        parent = heap[above]
        if not is_before(due, parent):
            break
        heap[place] = parent
        place = above
    heap[place] = due


def take(heap: list[Due]) -> Due:
    """Take out what is due first. O(log n). Raises IndexError where there is nothing."""
    last = heap.pop()
    size = len(heap)
    if not size:
        return last
    first, place, child = heap[0], 0, 1
    while child < size:
        lower = heap[child]
        if child + 1 < size:
            other = heap[child + 1]
            if is_before(other, lower):
                child, lower = child + 1, other
        if not is_before(lower, last):
            break
        heap[place] = lower
        place = child
        child = 2 * place + 1
    heap[place] = last
    return first


IS_PLAIN = hasattr(is_before, "__code__")
"""Whether this file runs as it is written."""

"""Who waits at a replica, and who is next: in the order of coming, or by priority."""

from bisect import insort
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from engine.execution.executor import Sequence


class WaitingLine(Protocol):
    """What a scheduler asks of a line; a `deque` is one, first come, first served."""

    def append(self, sequence: Sequence, /) -> None:
        """Put a sequence behind all that go before it."""

    def appendleft(self, sequence: Sequence, /) -> None:
        """Put a sequence before all that it does not have to wait for."""

    def popleft(self) -> Sequence:
        """Take the next one out."""

    def remove(self, sequence: Sequence, /) -> None:
        """Take that one out, wherever it stands."""

    def clear(self) -> None:
        """Forget everybody."""

    def __getitem__(self, index: int, /) -> Sequence: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence]: ...


class PriorityLine:
    """The largest priority first; among equals the order of coming. O(1) for as many priorities as there are.

    Nobody who runs is interrupted: a priority counts where somebody has to wait.
    """

    __slots__ = ("_by_priority", "_order", "_size")

    def __init__(self) -> None:
        self._by_priority: dict[int, deque[Sequence]] = {}
        self._order: list[int] = []  # of the priorities of those who wait, negated: the largest stands first
        self._size = 0

    def append(self, sequence: Sequence, /) -> None:
        self._equals(sequence.priority).append(sequence)
        self._size += 1

    def appendleft(self, sequence: Sequence, /) -> None:
        self._equals(sequence.priority).appendleft(sequence)
        self._size += 1

    def popleft(self) -> Sequence:
        first = self._by_priority[-self._order[0]].popleft()
        self._taken(first.priority)
        return first

    def remove(self, sequence: Sequence, /) -> None:
        self._by_priority[sequence.priority].remove(sequence)
        self._taken(sequence.priority)

    def clear(self) -> None:
        self._by_priority.clear()
        self._order.clear()
        self._size = 0

    def __getitem__(self, index: int, /) -> Sequence:
        if index == 0 and self._order:
            return self._by_priority[-self._order[0]][0]
        return list(self)[index]

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for rank in self._order:
            yield from self._by_priority[-rank]

    def _equals(self, priority: int) -> deque[Sequence]:
        line = self._by_priority.get(priority)
        if line is None:
            line = self._by_priority[priority] = deque()
            insort(self._order, -priority)
        return line

    def _taken(self, priority: int) -> None:
        self._size -= 1
        if not self._by_priority[priority]:
            del self._by_priority[priority]
            self._order.remove(-priority)

"""Things by a rank that changes."""

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
SLACK = 16  # entries out of date that are put up with, however few things there are


class Ranking(Generic[Key]):
    """Who has the least rank; among equals, whoever has had it longest. Each operation is O(log n), over many.

    A heap with an entry for every rank that something has had. Those out of date are dropped when they come up, and
    all of them when they are the most. `Any` are ranks that can be compared with each other.
    """

    __slots__ = ("_heap", "_latest", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, Key]] = []
        self._latest: dict[Key, tuple[Any, int, Key]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._latest)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._latest)

    def put(self, key: Key, rank: Any) -> None:
        """Give something a rank, its first one or another."""
        latest = self._latest.get(key)
        if latest is not None and latest[0] == rank:
            return
        self._number += 1
        entry = self._latest[key] = (rank, self._number, key)
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._latest) + SLACK:
            self._heap = list(self._latest.values())
            heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Forget something, known or not."""
        self._latest.pop(key, None)

    def least(self) -> Key | None:
        """Whoever is first; None where nobody is."""
        heap, latest = self._heap, self._latest
        while heap:
            entry = heap[0]
            if latest.get(entry[2]) is entry:
                return entry[2]
            heappop(heap)
        return None

    def rank_of(self, key: Key) -> Any:
        """The rank of something that is here."""
        return self._latest[key][0]

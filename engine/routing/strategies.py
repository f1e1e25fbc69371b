"""All strategies, in a row: each answers one question, which of these replicas serves the request.

The router promises a list that is never empty, healthy and in stable order; a strategy returns one of it.
There is one instance a model, so state in `__init__` is that model's own.
"""

from bisect import bisect
from collections.abc import Sequence
from typing import Protocol

from engine.named import Named
from engine.request import Request


class Replica(Protocol):
    """What a strategy may know of a replica. The loads are our own count, up to date within the decision."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...

    tokens_in_flight: int
    requests_in_flight: int


class Strategy(Protocol):
    """Who serves. Synchronous, never blocks; reads the replicas and changes only itself."""

    def pick(self, request: Request, replicas: Sequence[Replica], now_ns: int) -> Replica:
        """One of `replicas`."""


strategy: Named[Strategy] = Named("strategy")


class _Turn:
    """Whose turn it is in a list that may shrink and grow between two looks.

    The turn goes to whoever stands after the last one chosen, in the one order that all lists are parts of. A
    mere counter would favour some of them whenever a fallback is chosen from a shorter list.
    """

    __slots__ = ("_last", "_order", "_place", "_seen")

    def __init__(self) -> None:
        self._order: dict[str, int] = {}
        self._seen: Sequence[Replica] = ()
        self._place = -1  # of the last one chosen, in `_seen`
        self._last = ""  # the name of the last one chosen

    def next(self, replicas: Sequence[Replica]) -> int:
        """The index of the one whose turn it is. O(1) as long as the list stays the same."""
        if replicas is self._seen:
            place = self._place + 1
            return place if place < len(replicas) else 0
        order = self._order
        ranks = sorted([order.setdefault(replica.name, len(order)) for replica in replicas])
        for replica, rank in zip(replicas, ranks, strict=True):
            order[replica.name] = rank  # one that became known late may stand in the middle
        place = bisect(ranks, order.get(self._last, -1))
        return place if place < len(replicas) else 0

    def take(self, replicas: Sequence[Replica], index: int) -> Replica:
        """Note that the one at `index` is chosen."""
        chosen = replicas[index]
        self._seen, self._place, self._last = replicas, index, chosen.name
        return chosen


@strategy("round_robin")
class RoundRobin:
    """Each in turn."""

    def __init__(self) -> None:
        self._turn = _Turn()

    def pick(self, request: Request, replicas: Sequence[Replica], now_ns: int) -> Replica:
        return self._turn.take(replicas, self._turn.next(replicas))


@strategy("least_loaded")
class LeastLoaded:
    """Whoever has the fewest tokens in flight; among equals each in turn: an idle fleet shares evenly."""

    def __init__(self) -> None:
        self._turn = _Turn()

    def pick(self, request: Request, replicas: Sequence[Replica], now_ns: int) -> Replica:
        count = len(replicas)
        best = self._turn.next(replicas)
        least = replicas[best].tokens_in_flight
        for index in range(best + 1 - count, best):  # the others, in turn; negative indices wrap for free
            load = replicas[index].tokens_in_flight
            if load < least:
                best, least = index, load
        return self._turn.take(replicas, best % count)

"""All strategies, in a row: each answers one question, which of these replicas serves the request.

The router promises a list that is never empty, healthy and in stable order; a strategy returns one of it.
There is one instance a model, so state in `__init__` is that model's own.
"""

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


@strategy("round_robin")
class RoundRobin:
    """Each in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def pick(self, request: Request, replicas: Sequence[Replica], now_ns: int) -> Replica:
        self._turn = turn = (self._turn + 1) % len(replicas)
        return replicas[turn]


@strategy("least_loaded")
class LeastLoaded:
    """Whoever has the fewest tokens in flight; among equals each in turn, so that an idle fleet shares evenly."""

    def __init__(self) -> None:
        self._turn = -1

    def pick(self, request: Request, replicas: Sequence[Replica], now_ns: int) -> Replica:
        count = len(replicas)
        self._turn = turn = (self._turn + 1) % count
        best = replicas[turn]
        for offset in range(
            1 - count, 0
        ):  # from the one after `turn`, around; negative indices wrap for free
            replica = replicas[turn + offset]
            if replica.tokens_in_flight < best.tokens_in_flight:
                best = replica
        return best

"""The router: candidates kept per model, a strategy's pick among the healthy, and the next one when it is lost."""

from collections.abc import Callable, Mapping
from typing import Self

from engine.errors import NoReplica
from engine.request import Request
from engine.routing.strategies import Replica, Strategy, strategy
from engine.settings import RoutingSettings


class _Group:
    """The replicas of one model: all of them, those that may be given requests, and who chooses."""

    __slots__ = ("all", "benched", "candidates", "strategy")

    def __init__(self, chooser: Strategy) -> None:
        self.all: list[Replica] = []
        self.benched: set[str] = set()
        self.candidates: list[Replica] = []
        self.strategy = chooser


Observer = Callable[[Request, int, Replica, "list[Replica]", int], None]
"""Told of each decision before it counts: request, attempt, chosen, candidates, now_ns."""


class Router:
    """Finds the replica for a request. Decisions are synchronous; loads change within the decision."""

    def __init__(self, settings: RoutingSettings, observer: Observer | None = None) -> None:
        """Raises UnknownName, or BadSettings for options that the strategy does not have."""
        self.strategy_name = settings.strategy
        self.max_attempts = settings.max_attempts
        self._options: Mapping[str, object] = settings.options
        self._observer = observer
        self._groups: dict[str, _Group] = {}

    def add(self, replica: Replica) -> None:
        """A replica that can be given requests from now on."""
        group = self._groups.get(replica.model)
        if group is None:
            group = self._groups[replica.model] = _Group(strategy.make(self.strategy_name, **self._options))
        group.all.append(replica)
        group.candidates = [*group.candidates, replica]  # a new list: strategies know a list by its identity

    def remove(self, replica: Replica) -> None:
        """A replica that is gone for good. Raises KeyError for one that was never added."""
        group = self._groups[replica.model]
        group.all.remove(replica)
        group.benched.discard(replica.name)
        group.candidates = [each for each in group.candidates if each is not replica]
        if not group.all:
            del self._groups[replica.model]

    def set_available(self, replica: Replica, available: bool) -> None:
        """Give it requests, or none any more. Lists change here, on health changes, never per request."""
        group = self._groups[replica.model]
        if available:
            group.benched.discard(replica.name)
        else:
            group.benched.add(replica.name)
        group.candidates = [each for each in group.all if each.name not in group.benched]

    def route(self, request: Request, model: str, now_ns: int) -> "Route":
        """A way for the request, its first replica chosen and counted. Raises NoReplica when none is healthy."""
        group = self._groups.get(model)
        if group is None or not group.candidates:
            raise NoReplica(f"no healthy replica serves {model!r}; try again when one has recovered")
        return Route(self, group, request, now_ns)

    def choose(self, group: _Group, request: Request, tried: list[Replica], now_ns: int) -> Replica | None:
        """The strategy's pick among the candidates not yet tried; None when there is none."""
        candidates = group.candidates
        if tried:
            candidates = [replica for replica in candidates if replica not in tried]
        if not candidates:
            return None
        chosen = group.strategy.pick(request, candidates, now_ns)
        if self._observer is not None:
            self._observer(request, len(tried) + 1, chosen, candidates, now_ns)
        return chosen


class Route:
    """The replicas that one request tries, best first, each chosen when it is needed.

    It counts the request into the load of the replica that holds it, from the decision on: a count that comes
    later sends a whole burst to one replica. Leaving the `with` block takes it out again.
    """

    __slots__ = ("_group", "_held", "_next", "_request", "_router", "_seen", "tried")

    def __init__(self, router: Router, group: _Group, request: Request, now_ns: int) -> None:
        self._router = router
        self._group = group
        self._request = request
        self._held: Replica | None = None
        self._seen = group.candidates  # a new list at every change of health
        self.tried: list[Replica] = []
        self._next = self._choose(now_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._release()

    def next(self, now_ns: int) -> Replica | None:
        """The replica to try now; None when no healthy one is left or the attempts are used up.

        One that fell ill since it was chosen (while the request waited for its turn) is not given out.
        """
        group = self._group
        if (
            self._next is not None
            and group.candidates is not self._seen
            and self._next not in group.candidates
        ):
            self._release()
            self._next = None
        replica = self._next or self._choose(now_ns)
        self._next = None
        if replica is not None:
            self.tried.append(replica)
        return replica

    def _choose(self, now_ns: int) -> Replica | None:
        self._release()
        if len(self.tried) >= self._router.max_attempts:
            return None
        replica = self._router.choose(self._group, self._request, self.tried, now_ns)
        if replica is not None:
            self._held = replica
            replica.tokens_in_flight += self._request.max_tokens
            replica.requests_in_flight += 1
        return replica

    def _release(self) -> None:
        if self._held is not None:
            self._held.tokens_in_flight -= self._request.max_tokens
            self._held.requests_in_flight -= 1
            self._held = None

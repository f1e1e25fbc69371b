"""The router: who serves a request. Everything slow happens when something changes; a decision is a few look-ups.

Each name that requests are routed by (a model's key, a group) has a *pool*: the seats of its replicas, those of them
that are open, and a strategy of its own. A request of a known session goes where its session is; the strategy picks
for every other one, and the load counts from that moment on. Where more has to be looked at (a replica on slow
start, too few left, a log wanted, another try), the decision is made *with care*, by the long way.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Final, Self

from engine.chance import draws
from engine.clock import to_ns
from engine.errors import BadSettings, EngineError, NoReplica, NotFound
from engine.figures import Figure, Values
from engine.request import Request
from engine.routing.decisions import (
    ONLY,
    OVERRULED,
    RAMP,
    RETRY,
    SESSION,
    STRATEGY,
    Choice,
    cache_of,
    seen,
)
from engine.routing.seats import NEVER_NS, Headroom, Price, Room, Seat, Tools, Turns, all_free, full_price
from engine.routing.sessions import Sessions, Table
from engine.routing.strategies import SCANNED, Strategy, make_strategy
from engine.settings import RoutingSettings

SMOOTHING: Final = 0.2  # weight of the newest observation
OBSERVED: Final = 8  # observations before a replica is compared with others
LEAST_COMPARED: Final = 3  # replicas among which one can be an outlier
START_SHARE: Final = 0.1  # of its part, at the beginning of a slow start
LOG_LENGTH: Final = 10_000
GOLDEN: Final = 0x9E3779B97F4A7C15
WORD: Final = (1 << 64) - 1


@dataclass(slots=True)
class RouterChange:
    """Something that the router does by itself: a replica ejected or back, a pool in panic or out of it."""

    at_ns: int
    subject: str
    change: str
    cause: str


Observer = Callable[[Choice], None]
ChangeObserver = Callable[[RouterChange], None]
Overrule = Callable[[Request, int, Sequence[Seat], Seat], Seat]
"""Somebody above the strategy: of a request, its attempt, the candidates and the one chosen, who it is instead."""
Later = Callable[[int, Callable[[], None]], object]
"""Calls back so many nanoseconds later."""


class Pool:
    """The seats that one name can be served by, and who chooses among them."""

    __slots__ = (
        "chosen",
        "depths",
        "eased",
        "is_watched",
        "live",
        "name",
        "panics",
        "pick",
        "seats",
        "state",
        "strategy",
        "table",
    )

    def __init__(self, name: str, chooser: Strategy, table: Table | None) -> None:
        self.name = name
        self.table = table
        self.seats: list[Seat] = []
        self.live: list[Seat] = []
        self.panics = False
        self.is_watched = False  # decisions have to be made with care
        self.use(chooser)

    def use(self, chooser: Strategy) -> None:
        """Let that strategy choose from now on."""
        self.strategy = chooser
        self.pick = chooser.pick
        self.depths = cache_of(chooser)
        self.chosen: Callable[[Request, Seat], None] | None = getattr(chooser, "chosen", None)
        self.eased: Callable[[Seat], None] | None = getattr(chooser, "eased", None)
        self.state: Callable[[], object] = getattr(chooser, "state", stateless)


class Router:
    """Finds the replica for a request. Decisions are synchronous; loads change within the decision."""

    def __init__(
        self,
        settings: RoutingSettings,
        observer: Observer | None = None,
        *,
        seed: int = 1,
        headroom: Headroom = all_free,
        price: Price = full_price,
        block_tokens: int = 16,
        later: Later | None = None,
        on_change: ChangeObserver | None = None,
    ) -> None:
        """`observer` is told of the decisions that are put on record, `on_change` of what the router does by itself.

        `later` is the clock's, for replicas that are ejected for a while. Raises UnknownName, or BadSettings for
        options that the strategy does not have.
        """
        self.settings = settings
        self.strategy_name = settings.strategy
        self.max_attempts = settings.max_attempts
        self.sessions = Sessions(to_ns(settings.session_timeout_s), settings.session_capacity)
        self.log: deque[Choice] = deque(maxlen=LOG_LENGTH)
        self.overrule: Overrule | None = (
            None  # asked about decisions that are made with care: put all on record
        )
        self._observer = observer
        self._on_change = on_change
        self._later = later
        self._seed = seed
        self._headroom = headroom
        self._price = price
        self._block_tokens = block_tokens
        self._pools: dict[str, Pool] = {}
        self._seats: dict[str, Seat] = {}
        self._ramping: list[Seat] = []
        self._ramp_ns = to_ns(settings.slow_start_s)
        self._refresh_ns = to_ns(settings.refresh_s)
        self._refreshed_ns = 0
        self._log_below = round(settings.decision_log * (WORD + 1))
        import_strategies(settings.modules)
        self._drawn: list[float] = []
        self._turns = Turns()
        self._rooms: dict[str, Room] = {}
        self._num_gone = 0  # decisions for replicas that are there no more
        self._num_found = 0  # sessions found by decisions that were made with care
        self._reasons: dict[str, int] = {}  # of decisions that were made with care
        self.wants_prefixes = hasattr(self._make_strategy(""), "depths") or "cache_aware" in settings.strategy

    # who is there

    def add(
        self,
        name: str,
        model: str,
        groups: Iterable[str] = (),
        *,
        holder: str = "",
        prefill_ns: float = 0.0,
    ) -> Seat:
        """A replica that can be given requests from now on, for its model and for some groups.

        Replicas with the same `holder` share what they have cached; `prefill_ns` is what a prompt token costs.
        """
        seat = Seat(name, model, holder, self.settings.weights.get(name, 1.0))
        seat.prefill_ns = prefill_ns
        seat.room = self._rooms.setdefault(model, seat.room)
        seat.pools = tuple(dict.fromkeys((model, *groups)))
        self._seats[name] = seat
        for pool_name in seat.pools:
            pool = self._pools.get(pool_name)
            if pool is None:
                pool = self._pools[pool_name] = self._make_pool(pool_name)
            pool.seats.append(seat)
            self._rebuild(pool, 0)
        return seat

    def remove(self, name: str) -> None:
        """A replica that is gone for good. Raises KeyError for one that was never added."""
        seat = self._seats.pop(name)
        seat.is_open = False
        self._num_gone += seat.num_routed
        if seat in self._ramping:
            self._ramping.remove(seat)
        for pool_name in seat.pools:
            pool = self._pools[pool_name]
            pool.seats.remove(seat)
            self._rebuild(pool, 0)
            if not pool.seats:
                if pool.table is not None:
                    self.sessions.drop(pool.table)
                del self._pools[pool_name]

    def set_available(self, name: str, available: bool, now_ns: int = 0) -> None:
        """Give it requests, or none any more. Lists change here, on health changes, never per request."""
        seat = self._seats[name]
        if seat.is_healthy != available:
            seat.is_healthy = available
            self._turn(seat, now_ns)

    def drain(self, name: str, now_ns: int, *, drained: bool = True) -> None:
        """Give a replica no more requests, however well it is, or give it some again: an operator's word.

        Raises NotFound.
        """
        seat = self._seats.get(name)
        if seat is None:
            raise NotFound(f"no replica is called {name!r}; there are {', '.join(self._seats) or 'none'}")
        if seat.is_drained != drained:
            seat.is_drained = drained
            self._tell(now_ns, name, "drained" if drained else "back", "an operator wants it")
            self._turn(seat, now_ns)

    def set_strategy(self, strategy: str, options: dict[str, Any], now_ns: int) -> None:
        """Let another strategy choose from now on; loads, sessions and health stay as they are.

        Raises UnknownName, or BadSettings for options that it does not have; then nothing has changed.
        """
        before, wanted = self.settings, self.wants_prefixes
        self.settings = replace(before, strategy=strategy, options=options)
        try:
            made = {name: self._make_strategy(name) for name in self._pools}
            self.wants_prefixes = hasattr(self._make_strategy(""), "depths") or "cache_aware" in strategy
        except EngineError:
            self.settings, self.wants_prefixes = before, wanted
            raise
        self.strategy_name = strategy
        for pool in self._pools.values():
            if pool.eased is not None:
                for seat in pool.seats:
                    if pool.eased in seat.watchers:
                        seat.watchers.remove(pool.eased)
            pool.use(made[pool.name])
            self._rebuild(pool, now_ns)
        self._tell(now_ns, "router", f"strategy {strategy}", f"an operator wants it, not {before.strategy}")

    def seat(self, name: str) -> Seat:
        """What the router knows of a replica. Raises KeyError."""
        return self._seats[name]

    def tokens_in_flight(self, name: str) -> int:
        """What is promised to a replica; 0 for one that is not known here (yet, or any more)."""
        seat = self._seats.get(name)
        return 0 if seat is None else seat.tokens_in_flight

    def seats(self) -> list[Seat]:
        """Those of all replicas, in the order in which they came."""
        return list(self._seats.values())

    def seats_of(self, pool: str) -> list[Seat]:
        """All seats of a name, open or not."""
        found = self._pools.get(pool)
        return [] if found is None else found.seats

    def has_open(self, pool: str) -> bool:
        """Whether anybody could be given a request to that name now."""
        found = self._pools.get(pool)
        return found is not None and len(found.live) > 0

    # decisions

    def route(self, pool_name: str, request: Request, tokens: int, now_ns: int) -> Seat:
        """Who serves the request, which occupies up to `tokens` there from now on. Release it exactly once.

        Raises NoReplica when none is open.
        """
        try:
            pool = self._pools[pool_name]
        except KeyError:
            return self._route_with_care(pool_name, request, tokens, now_ns)
        if pool.is_watched:
            return self._route_with_care(pool_name, request, tokens, now_ns)
        session = request.session
        if session is None or pool.table is None:
            seat = pool.pick(request, pool.live, now_ns)
        else:
            known = pool.table.find(session, now_ns)
            if known is None:
                seat = pool.pick(request, pool.live, now_ns)
                pool.table.bind(session, seat, now_ns)
            else:
                seat = known
        seat.tokens_in_flight += tokens
        seat.requests_in_flight += 1
        seat.num_routed += 1
        if pool.chosen is not None:
            pool.chosen(request, seat)
        return seat

    def release(self, pool_name: str, seat: Seat, request: Request, tokens: int, now_ns: int) -> None:
        """The request occupies nothing there any more."""
        if self._refresh_ns:
            seat.true_tokens -= tokens
            seat.true_requests -= 1
        else:
            seat.tokens_in_flight -= tokens
            seat.requests_in_flight -= 1
            for tell in seat.watchers:
                tell(seat)
        if request.session is not None:
            pool = self._pools.get(pool_name)
            if pool is not None and pool.table is not None:
                pool.table.ended(request.session, now_ns)

    def attempts(
        self, pool_name: str, request: Request, tokens: int, now_ns: int, without: Sequence[Seat] = ()
    ) -> "Attempts":
        """The replicas that a request tries, the first one chosen and counted. Raises NoReplica if none is open."""
        return Attempts(self, pool_name, request, tokens, now_ns, without)

    def route_around(
        self, pool_name: str, request: Request, tokens: int, without: Sequence[Seat], now_ns: int
    ) -> Seat:
        """As `route`, but none of those. Raises NoReplica when nobody else is open."""
        return self._route_with_care(pool_name, request, tokens, now_ns, without)

    def reroute(
        self, pool_name: str, request: Request, tokens: int, tried: Sequence[Seat], now_ns: int
    ) -> Seat | None:
        """Another one than those tried before; None when there is none."""
        try:
            return self.route_around(pool_name, request, tokens, tried, now_ns)
        except NoReplica:
            return None

    def explain(self, pool_name: str, request: Request, now_ns: int) -> Choice:
        """What would be decided now, and why; nothing is counted, and nobody's turn is used up. Raises NoReplica."""
        pool, candidates, guards = self._candidates(pool_name, ())
        decision = self._record(pool, request, candidates, guards, 1, now_ns)
        known = (
            None
            if request.session is None or pool.table is None
            else pool.table.peek(request.session, now_ns)
        )
        if known is not None and known in candidates:
            decision.chosen, decision.reason = known.name, SESSION
            return decision
        state = pool.state()
        before = [(seat.room.left, seat.turn, seat.latency_ns, seat.observed_ns) for seat in candidates]
        decision.chosen = pool.strategy.pick(request, candidates, now_ns).name
        decision.drawn, self._drawn = self._drawn, []
        for seat, kept in zip(candidates, before, strict=True):
            seat.room.left, seat.turn, seat.latency_ns, seat.observed_ns = kept
        if state is not None:
            pool.strategy.resume(candidates, state)  # type: ignore[attr-defined]
        return decision

    def figures(self) -> Iterator[Figure]:
        """What the router counts: decisions by replica, sessions, who is open."""
        seats = self._seats.values()
        routed: Values = {(seat.model, seat.name): float(seat.num_routed) for seat in seats}
        is_open: Values = {(seat.model, seat.name): float(seat.is_open) for seat in seats}
        loads: Values = {(seat.model, seat.name): float(seat.tokens_in_flight) for seat in seats}
        whose = ("model_name", "replica")
        yield Figure("modelyard:router_decisions", "Requests sent to a replica.", whose, routed)
        yield Figure("modelyard:router_decision_reasons", "Why they were.", ("reason",), self._why())
        yield Figure(
            "modelyard:router_strategy",
            "1 for the one in use.",
            ("strategy",),
            {(self.strategy_name,): 1.0},
            is_gauge=True,
        )
        yield Figure(
            "modelyard:router_open", "Whether a replica is given requests.", whose, is_open, is_gauge=True
        )
        yield Figure(
            "modelyard:router_tokens_in_flight", "Tokens promised to it.", whose, loads, is_gauge=True
        )
        sessions = self.sessions
        events: Values = {
            ("hit",): float(sessions.num_hits),
            ("miss",): float(sessions.num_misses),
            ("moved",): float(sessions.num_moved),
        }
        yield Figure("modelyard:router_sessions", "Look-ups of sessions.", ("event",), events)
        panics: Values = {(pool.name,): float(pool.panics) for pool in self._pools.values()}
        yield Figure("modelyard:router_panic", "Too few replicas are left.", ("pool",), panics, is_gauge=True)

    def _why(self) -> Values:
        """Decisions by their reason. The short way counts none: what it did is what is left of all of them."""
        why = dict(self._reasons)
        short = self._num_gone + sum([seat.num_routed for seat in self._seats.values()]) - sum(why.values())
        sessions = self.sessions.num_hits - self._num_found
        why[SESSION] = why.get(SESSION, 0) + sessions
        why[STRATEGY] = why.get(STRATEGY, 0) + short - sessions
        return {(reason,): float(number) for reason, number in why.items()}

    # what is seen of replicas

    def observe(self, seat: Seat, ttft_ns: int, token_ns: float, now_ns: int) -> None:
        """An answer: its time to first token, and the time for each token after it (0: there was none)."""
        seat.num_observed += 1
        if seat.num_observed > 1:
            seat.latency_ns += SMOOTHING * (ttft_ns - seat.latency_ns)
        else:
            seat.latency_ns = float(ttft_ns)
        if token_ns:
            seat.token_ns += SMOOTHING * (token_ns - seat.token_ns) if seat.token_ns else token_ns
        seat.observed_ns = now_ns
        if self.settings.eject_above is not None and seat.num_observed % OBSERVED == 0:
            self._look_for_outlier(seat, now_ns)

    # the long way

    def _route_with_care(
        self, pool_name: str, request: Request, tokens: int, now_ns: int, tried: Sequence[Seat] = ()
    ) -> Seat:
        if self._refresh_ns:
            self._refresh(now_ns)
        pool, candidates, guards = self._candidates(pool_name, tried)
        decision = None
        if self._log_below and (self._log_below > WORD or self._is_logged(request)):
            decision = self._record(pool, request, candidates, guards, len(tried) + 1, now_ns)
        if self._ramping:
            self._earn(pool, now_ns)
        seat, reason = self._choose(pool, request, candidates, tried, now_ns)
        if self.overrule is not None:
            seat, reason = self._overruled(pool, request, candidates, tried, now_ns, seat, reason)
        if decision is not None:
            decision.chosen, decision.reason = seat.name, reason
            decision.drawn, self._drawn = self._drawn, []
            self.log.append(decision)
            if self._observer is not None:
                self._observer(decision)
        if self._refresh_ns:
            seat.true_tokens += tokens
            seat.true_requests += 1
        else:
            seat.tokens_in_flight += tokens
            seat.requests_in_flight += 1
        seat.num_routed += 1
        self._reasons[reason] = self._reasons.get(reason, 0) + 1
        if pool.chosen is not None:
            pool.chosen(request, seat)
        return seat

    def _choose(
        self, pool: Pool, request: Request, candidates: list[Seat], tried: Sequence[Seat], now_ns: int
    ) -> tuple[Seat, str]:
        session = request.session
        if session is not None and pool.table is not None:
            known = pool.table.find(session, now_ns)
            if known is not None:
                self._num_found += 1
                if known in candidates:
                    known.credit -= 1
                    return known, SESSION
                pool.table.ended(session, now_ns)
        reason = RETRY if tried else STRATEGY
        if len(candidates) == 1:
            seat, reason = candidates[0], RETRY if tried else ONLY
        else:
            seat = pool.strategy.pick(request, candidates, now_ns)
            if seat.ramp_since_ns != NEVER_NS and seat.credit < 1:
                others = [each for each in candidates if each.ramp_since_ns == NEVER_NS or each.credit >= 1]
                if others:
                    seat, reason = pool.strategy.pick(request, others, now_ns), RAMP
        seat.credit -= 1
        if session is not None and pool.table is not None:
            pool.table.bind(session, seat, now_ns)
        return seat, reason

    def _overruled(
        self,
        pool: Pool,
        request: Request,
        candidates: list[Seat],
        tried: Sequence[Seat],
        now_ns: int,
        seat: Seat,
        reason: str,
    ) -> tuple[Seat, str]:
        """What is done instead, where somebody says so; a session moves along."""
        assert self.overrule is not None
        other = self.overrule(request, len(tried) + 1, candidates, seat)
        if other is seat:
            return seat, reason
        if request.session is not None and pool.table is not None:
            pool.table.ended(request.session, now_ns)
            pool.table.bind(request.session, other, now_ns)
        return other, OVERRULED

    def _candidates(
        self, pool_name: str, tried: Sequence[Seat]
    ) -> tuple[Pool, list[Seat], list[tuple[str, str]]]:
        """Who may be chosen, and who may not and why. Raises NoReplica."""
        pool = self._pools.get(pool_name)
        if pool is None or not pool.live:
            raise NoReplica(f"no healthy replica serves {pool_name!r}; try again when one has recovered")
        candidates = pool.live
        guards: list[tuple[str, str]] = []
        if len(pool.live) < len(pool.seats):
            guards = [(seat.name, _why_closed(seat)) for seat in pool.seats if not seat.is_open]
        if tried:
            candidates = [seat for seat in candidates if seat not in tried]
            guards += [(seat.name, "tried before") for seat in tried]
        if pool.panics:
            most = self.settings.panic_requests
            free = [seat for seat in candidates if max(seat.requests_in_flight, seat.true_requests) < most]
            guards += [
                (seat.name, f"has {most} requests in flight") for seat in candidates if seat not in free
            ]
            candidates = free
            if not free:
                left, total = len(pool.live), len(pool.seats)
                raise NoReplica(
                    f"only {left} of {total} replicas of {pool_name!r} are left, fewer than routing.panic_below "
                    f"({self.settings.panic_below:g}) allows, and each has {most} requests in flight; try again later"
                )
        if not candidates:
            raise NoReplica(f"every healthy replica of {pool_name!r} was tried")
        return pool, candidates, guards

    def _record(
        self,
        pool: Pool,
        request: Request,
        candidates: list[Seat],
        guards: list[tuple[str, str]],
        attempt: int,
        now_ns: int,
    ) -> Choice:
        """The decision as it stands before anybody is chosen."""
        self._drawn = []
        return Choice(
            now_ns,
            request.id,
            attempt,
            pool.name,
            self.strategy_name,
            self.settings.options,
            "",
            STRATEGY,
            seen(candidates, pool.depths, request),
            guards,
            request.session,
            request.num_prompt_tokens,
            request.max_output_tokens,
            self._block_tokens,
            [],
            pool.state(),
        )

    def _is_logged(self, request: Request) -> bool:
        """By a hash of its id: the same requests in every run, and all tries of one."""
        return (request.id * GOLDEN & WORD) < self._log_below

    def _refresh(self, now_ns: int) -> None:
        """Where loads are seen only now and then: see them, if it is time."""
        if now_ns >= self._refreshed_ns + self._refresh_ns:
            self._refreshed_ns = now_ns - now_ns % self._refresh_ns
            for seat in self._seats.values():
                seat.tokens_in_flight, seat.requests_in_flight = seat.true_tokens, seat.true_requests
                for tell in seat.watchers:
                    tell(seat)

    # slow start

    def _earn(self, pool: Pool, now_ns: int) -> None:
        """Each seat on slow start earns its part of this decision; one whose time is over stands with the others."""
        over = False
        for seat in self._ramping:
            age_ns = now_ns - seat.ramp_since_ns
            if age_ns >= self._ramp_ns:
                over = True
            elif pool.name in seat.pools:
                share = START_SHARE + (1 - START_SHARE) * age_ns / self._ramp_ns
                seat.credit = min(seat.credit + share / len(pool.live), 1.0 + share)
        if over:
            for seat in [each for each in self._ramping if now_ns - each.ramp_since_ns >= self._ramp_ns]:
                seat.ramp_since_ns = NEVER_NS
                self._ramping.remove(seat)
                for name in seat.pools:
                    self._watch(self._pools[name])

    # who is open

    def _turn(self, seat: Seat, now_ns: int) -> None:
        """Open or close a seat, after what is known of it."""
        is_open = seat.is_healthy and not seat.is_ejected and not seat.is_drained
        if is_open == seat.is_open:
            return
        seat.is_open = is_open
        if seat in self._ramping:
            self._ramping.remove(seat)
        seat.ramp_since_ns = NEVER_NS
        if is_open and self._ramp_ns:
            seat.ramp_since_ns, seat.credit = now_ns, 0.0
            self._ramping.append(seat)
        for name in seat.pools:
            self._rebuild(self._pools[name], now_ns)

    def _rebuild(self, pool: Pool, now_ns: int) -> None:
        pool.live = [
            seat for seat in pool.seats if seat.is_open
        ]  # a new list: strategies know it by identity
        if pool.eased is not None and len(pool.live) > SCANNED:
            for seat in pool.seats:
                if pool.eased not in seat.watchers:
                    seat.watchers.append(pool.eased)
        panics = 0 < len(pool.live) < self.settings.panic_below * len(pool.seats)
        if panics != pool.panics:
            pool.panics = panics
            left = f"{len(pool.live)} of {len(pool.seats)} replicas are left"
            self._tell(now_ns, pool.name, "panic" if panics else "panic over", left)
        self._watch(pool)

    def _watch(self, pool: Pool) -> None:
        ramps = any(seat.ramp_since_ns != NEVER_NS for seat in pool.live)
        is_watched = ramps or pool.panics or self._refresh_ns > 0 or self._log_below > 0
        pool.is_watched = is_watched or not pool.live

    def _look_for_outlier(self, seat: Seat, now_ns: int) -> None:
        """Close a seat for a while if it is far slower than the others of its model."""
        pool = self._pools[seat.model]
        compared = sorted([each.latency_ns for each in pool.live if each.num_observed >= OBSERVED])
        ejected = sum(each.is_ejected for each in pool.seats)
        limit = self.settings.eject_above
        assert limit is not None
        if len(compared) < LEAST_COMPARED or (ejected + 1) > self.settings.max_ejected * len(pool.seats):
            return
        median_ns = compared[(len(compared) - 1) // 2]
        if seat.latency_ns > limit * median_ns and seat.is_open and self._later is not None:
            seat.is_ejected = True
            seat.num_ejections += 1
            cause = f"its time to first token is {seat.latency_ns / median_ns:.1f} times the median"
            self._tell(now_ns, seat.name, "ejected", cause)
            self._turn(seat, now_ns)
            for_ns = to_ns(self.settings.eject_s) << min(seat.num_ejections - 1, 6)
            self._later(for_ns, partial(self._readmit, seat, now_ns + for_ns, median_ns))

    def _readmit(self, seat: Seat, now_ns: int, latency_ns: float) -> None:
        """Its time is over: it begins like any other, and is compared again when enough was seen of it."""
        if self._seats.get(seat.name) is seat:
            seat.is_ejected = False
            seat.latency_ns, seat.num_observed = latency_ns, 1
            self._tell(now_ns, seat.name, "back", f"{self.settings.eject_s:g} s or more have passed")
            self._turn(seat, now_ns)

    def _tell(self, now_ns: int, subject: str, change: str, cause: str) -> None:
        if self._on_change is not None:
            self._on_change(RouterChange(now_ns, subject, change, cause))

    # pools

    def _make_pool(self, name: str) -> Pool:
        table = self.sessions.table() if self.settings.sessions else None
        return Pool(name, self._make_strategy(name), table)

    def _make_strategy(self, pool: str) -> Strategy:
        draw = draws(self._seed, f"routing {pool}")
        if self._log_below:
            draw = partial(self._draw_on_record, draw)
        settings = self.settings
        tools = Tools(
            draw, self._headroom, self._price, self._block_tokens, settings.index_blocks, self._turns
        )
        return make_strategy(settings.strategy, tools, settings.options)

    def _draw_on_record(self, draw: Callable[[], float]) -> float:
        drawn = draw()
        self._drawn.append(drawn)
        return drawn


class Attempts:
    """The replicas that one request tries, best first, each chosen when it is needed.

    Each counts as loaded from its choice on; leaving the `with` block takes the load away again.
    """

    __slots__ = (
        "_held",
        "_model",
        "_next",
        "_now_ns",
        "_pool",
        "_request",
        "_router",
        "_tokens",
        "_without",
        "tried",
    )

    def __init__(
        self,
        router: Router,
        pool: str,
        request: Request,
        tokens: int,
        now_ns: int,
        without: Sequence[Seat] = (),
    ) -> None:
        self._router = router
        self._pool = pool
        self._request = request
        self._tokens = tokens
        self._now_ns = now_ns
        self._without = without
        self._model: str | None = None
        self.tried: list[Seat] = []
        self._held: Seat | None = (
            router.route_around(pool, request, tokens, without, now_ns)
            if without
            else router.route(pool, request, tokens, now_ns)
        )
        self._next: Seat | None = self._held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._release(self._now_ns)

    @property
    def first(self) -> Seat:
        """Who was chosen first."""
        assert self._next is not None
        return self._next

    def stay_with(self, model: str) -> None:
        """Try replicas of that model only: the answer is its own."""
        self._model = model

    def next(self, now_ns: int) -> Seat | None:
        """The replica to try now; None when no open one is left or the attempts are used up.

        One that was closed since it was chosen (while the request waited for its turn) is not given out.
        """
        self._now_ns = now_ns
        seat, self._next = self._next, None
        if seat is None or not seat.is_open:
            self._release(now_ns)
            if len(self.tried) >= self._router.max_attempts:
                return None
            around = [*self.tried, *self._without]
            if self._model is not None:
                around += [seat for seat in self._router.seats_of(self._pool) if seat.model != self._model]
            seat = self._router.reroute(self._pool, self._request, self._tokens, around, now_ns)
            self._held = seat
        if seat is not None:
            self.tried.append(seat)
        return seat

    def pass_over(self) -> None:
        """The replica just given out takes nobody at the moment: that does not count as a try."""
        self._without = [*self._without, self.tried.pop()]

    def _release(self, now_ns: int) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._router.release(self._pool, held, self._request, self._tokens, now_ns)


def import_strategies(modules: Iterable[str]) -> None:
    """Import modules of one's own that register strategies. Raises BadSettings for one that is not there."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise BadSettings(f"routing.modules names {name!r}, which cannot be imported: {error}") from error


def check_strategy(settings: RoutingSettings) -> None:
    """Raise UnknownName or BadSettings for a strategy that cannot be made."""
    Router(settings)


def stateless() -> None:
    """What a strategy remembers that remembers nothing."""


def _why_closed(seat: Seat) -> str:
    if not seat.is_healthy:
        return "not healthy"
    if seat.is_drained:
        return "drained by an operator"
    return "ejected: too slow"

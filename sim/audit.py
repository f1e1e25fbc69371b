"""Always on: what holds in every run, whatever its traffic and its faults. A breach is a defect of ours."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from engine.engine import Engine
from engine.errors import EngineError
from engine.telemetry import Arrived, Ended, Event
from sim.recorder import MISSING, Numbers, Recorder, Words
from sim.traffic import Trace

ORDER = ("arrival_ns", "loaded_ns", "admitted_ns", "tried_ns", "queued_ns", "started_ns", "finished_ns")
"""Times of a request's last attempt, each of which may be missing, in the order in which they come."""

TOKENS = ("prompt_tokens", "output_tokens")
RESERVED = "modelyard:quota_reserved_tokens"
CACHED = tuple(f"cached_tokens_{tier}" for tier in ("gpu", "ram", "ssd", "network", "cloud"))


Column = npt.NDArray[np.signedinteger[Any]]
Columns = dict[str, Column]


class Broken(EngineError):
    """An invariant does not hold: the run's figures cannot be believed."""

    reason = "invariant_broken"


class Census:
    """A sink that counts who is inside, at every arrival and every end, and the area under that count.

    Whoever ends has arrived, asked for that model and brought that prompt, and ends once: Broken at the event that is
    otherwise. Less than half a microsecond an event.
    """

    kinds: ClassVar[frozenset[type[Event]]] = frozenset({Arrived, Ended})
    __slots__ = ("arrived", "ended", "inside", "now_ns", "outcomes", "stays_ns")

    def __init__(self) -> None:
        self.arrived = 0
        self.ended = 0
        self.stays_ns = 0  # times of ends less those of arrivals
        self.now_ns = 0
        self.outcomes: dict[str, int] = {}  # how many have ended in each way
        self.inside: dict[int, Arrived] = {}  # who is inside: how each one arrived, by its number

    @property
    def in_flight(self) -> int:
        return self.arrived - self.ended

    @property
    def area_ns(self) -> int:
        """The area under the number of those inside: from each arrival to its end, or to now."""
        return self.stays_ns + self.in_flight * self.now_ns

    @property
    def takers(self) -> dict[type[Event], Callable[[Any], None]]:
        """Who takes what."""
        return {Arrived: self.arrive, Ended: self.end}

    def emit(self, event: Event) -> None:
        self.takers[type(event)](event)

    def arrive(self, event: Arrived) -> None:
        """One more is inside."""
        now_ns, number = event.at_ns, event.request_id
        if now_ns < self.now_ns:
            self._went_back(now_ns)
        self.now_ns = now_ns
        self.stays_ns -= now_ns
        self.arrived += 1
        if number in self.inside:
            raise Broken(f"request {number} has arrived twice")
        self.inside[number] = event

    def end(self, event: Ended) -> None:
        """One that is inside leaves."""
        now_ns, outcome = event.at_ns, event.outcome
        if now_ns < self.now_ns:
            self._went_back(now_ns)
        self.now_ns = now_ns
        self.stays_ns += now_ns
        self.ended += 1
        arrived = self.inside.pop(event.request_id, None)
        if arrived is None:
            raise Broken(f"request {event.request_id} ends, and is not inside")
        if arrived.prompt_tokens != event.prompt_tokens or arrived.model != event.model_requested:
            raise Broken(f"request {event.request_id} arrived as {arrived}, and ends as {event}")
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _went_back(self, now_ns: int) -> None:
        raise Broken(f"the clock went back from {self.now_ns} ns to {now_ns} ns")

    def check(self, engine: Engine) -> None:
        """Raise Broken unless the engine's own books agree at this moment, in the middle of a run.

        Conservation; nobody is in two hands at once; no tier holds more than it can; no quota has given back places
        that it has not granted. O(replicas + tiers), for every point of the time series.
        """
        ended, inside, quotas = sum(self.outcomes.values()), len(self.inside), engine.quotas
        if ended != self.ended:  # what would be said is put together only where it has to be said
            raise Broken(f"{self.ended} requests have ended, {ended} in some way")
        if inside != self.in_flight:
            raise Broken(f"{self.in_flight} requests have no end, {inside} are inside")
        held = sum([each.num_in_hand for each in engine.replicas.values()]) + quotas.num_waiting
        if held > inside:
            raise Broken(f"{held} requests are in the hands of replicas or in line, of {inside} inside")
        if quotas.in_service < 0:
            raise Broken("the quota has given back more places than it granted")
        for tier in engine.cache.tiers:
            if not 0 <= tier.used_bytes <= tier.capacity_bytes:
                raise Broken(f"tier {tier.name} holds {tier.used_bytes} bytes of {tier.capacity_bytes}")


def audit(engine: Engine, recorder: Recorder, census: Census, trace: Trace | None = None) -> None:
    """Raise Broken unless the books of a drained run add up.

    Conservation: every arrival has exactly one end, in total and by model; every prompt token that the trace offered
    is some request's, and no request has more tokens than it asked for. Little's law, exactly, in integers: the area
    under the number in flight is the sum of the sojourns. Utilisation: each replica was busy while it had somebody to
    serve, and no longer. Each request's times are in order. Quotas and loads are back at zero, no block is held for
    a request that is gone, and the cache's bytes are what its blocks sum up to.
    """
    census.check(engine)
    names = ("request_id", "attempts", "first_token_ns", *ORDER, *TOKENS, *CACHED)
    columns = {name: cast("Numbers", recorder.columns[name]).view() for name in names}
    _require(census.in_flight == 0, f"{census.in_flight} requests have no end")
    ids = np.sort(columns["request_id"])
    _require(
        bool((ids[1:] > ids[:-1]).all()) and len(ids) == census.arrived, "a request has two ends, or none"
    )
    del ids
    sojourns_ns = int((columns["finished_ns"] - columns["arrival_ns"]).sum())
    _require(census.area_ns == sojourns_ns, f"Little: area {census.area_ns} ns, sojourns {sojourns_ns} ns")
    _check_order(columns)
    _check_tokens(columns)
    if trace is not None:
        _check_offers(columns, recorder, trace)
    _require(
        engine.quotas.in_service == 0 and engine.quotas.num_waiting == 0, "a quota slot was not given back"
    )
    for seat in engine.router.seats():
        loads = [seat.true_tokens, seat.true_requests]
        if not engine.settings.routing.refresh_s:  # else those that strategies see are of some time ago
            loads += [seat.tokens_in_flight, seat.requests_in_flight]
        _require(not any(loads), f"{seat.name} still counts a load")
    _check_ledger(engine)
    _check_busy(engine, recorder, columns)
    if engine.settings.cache.prefetch_after_s is None:  # else some may just be brought ahead of need
        held = len(engine.cache.pins)
        _require(not held, f"{held} blocks are held for requests that are gone")
    try:
        engine.cache.check_integrity()
    except AssertionError as error:
        raise Broken("the cache's books do not add up") from error
    try:
        engine.quotas.check_integrity()
    except AssertionError as error:
        raise Broken(f"the quotas' books do not add up: {error}") from error


def _check_ledger(engine: Engine) -> None:
    """What was granted and neither used nor given back is held by somebody; nobody is left."""
    held = next(figure for figure in engine.quotas.figures() if figure.name == RESERVED).values[()]
    _require(held == 0, f"the quota holds {held:g} tokens for nobody")


def _check_busy(engine: Engine, recorder: Recorder, columns: Columns) -> None:
    """U = X E[S] of each replica, in integers: it was busy for as long as one of its requests was being served.

    Exactly so where each had one attempt and got its answer, and nobody probes; otherwise at least so long, because
    nobody is told what a lost attempt or a probe took. Nothing is known of one that came into memory on the way.
    """
    now_ns, served = engine.clock.now_ns(), columns["started_ns"] != MISSING
    attempts, probes = columns["attempts"], engine.settings.health.enabled and engine.settings.health.probes
    is_whole = not probes and bool((attempts[served] == 1).all()) and not bool(attempts[~served].any())
    of = cast("Words", recorder.columns["replica"]).values()
    begin_ns, end_ns = columns["started_ns"], columns["finished_ns"]
    for name, replica in engine.replicas.items():
        busy_ns = replica.busy_ns
        _require(0 <= busy_ns <= now_ns, f"{name} was busy for {busy_ns} ns of {now_ns} ns")
        if engine.fleet.num_loads:
            continue
        here = served & (of == name)
        due_ns = covered_ns(begin_ns[here], end_ns[here])
        holds = busy_ns == due_ns if is_whole else busy_ns >= due_ns
        _require(holds, f"utilisation: {name} was busy for {busy_ns} ns and served for {due_ns} ns")


def covered_ns(begin_ns: Column, end_ns: Column) -> int:
    """How much of time some of the spans cover. O(n log n)."""
    if not len(begin_ns):
        return 0
    order = np.argsort(begin_ns, kind="stable")
    begins, ends = begin_ns[order].astype(np.int64), np.maximum.accumulate(end_ns[order].astype(np.int64))
    gaps = np.maximum(begins[1:] - ends[:-1], 0)
    return int(ends[-1] - begins[0] - gaps.sum())


def _check_order(columns: Columns) -> None:
    for before, after in pairwise(ORDER):
        _require(_in_order(columns, before, after), f"{after} lies before {before}")
    for before, after in (("arrival_ns", "first_token_ns"), ("first_token_ns", "finished_ns")):
        _require(_in_order(columns, before, after), f"{after} lies before {before}")


def _in_order(columns: Columns, before: str, after: str) -> bool:
    """Whether no row has the second time before the first; a missing one says nothing."""
    wrong = columns[before] > columns[after]
    return not bool((wrong & (columns[after] != MISSING)).any())


def _check_tokens(columns: Columns) -> None:
    """Each attempt computed a token of its prompt at least; who has tokens has a first one."""
    wide = np.int64  # a column is as narrow as its values: their sums are not
    cached = sum([np.maximum(columns[name], 0).astype(wide) for name in CACHED])
    # a later attempt's prompt has the answer so far
    most = columns["prompt_tokens"].astype(wide) + columns["output_tokens"]
    _require(bool((cached < most).all()), "more tokens were cached than there are")
    answered = columns["output_tokens"] > 0
    _require(
        bool((answered == (columns["first_token_ns"] != MISSING)).all()),
        "tokens without a first one, or none",
    )


def _check_offers(columns: Columns, recorder: Recorder, trace: Trace) -> None:
    """What was offered is what has ended: by model, by prompt tokens; and no answer is longer than asked for."""
    order = np.argsort(columns["request_id"], kind="stable")
    offered, asked = trace.prompt_tokens, trace.output_tokens
    _require(bool((columns["prompt_tokens"][order] == offered).all()), "prompt tokens were lost or made")
    _require(bool((columns["output_tokens"][order] <= asked).all()), "an answer is longer than asked for")
    ended = cast("Words", recorder.columns["model_requested"]).counts()
    wanted = {trace.model: len(trace)}
    if trace.model_of is not None:
        counts = np.bincount(trace.model_of, minlength=len(trace.models)).tolist()
        wanted = {name: count for name, count in zip(trace.models, counts, strict=True) if count}
    _require(ended == wanted, f"by model, {ended} ended of {wanted} offered")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)

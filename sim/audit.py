"""Always on: what holds in every run, whatever its traffic and its faults. A breach is a defect of ours."""

from dataclasses import dataclass
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
CACHED = tuple(f"cached_tokens_{tier}" for tier in ("gpu", "ram", "ssd", "network", "cloud"))


Columns = dict[str, npt.NDArray[np.signedinteger[Any]]]


class Broken(EngineError):
    """An invariant does not hold: the run's figures cannot be believed."""

    reason = "invariant_broken"


@dataclass(slots=True)
class Census:
    """A sink that counts who is inside, at every arrival and every end, and the area under that count."""

    kinds: ClassVar[frozenset[type[Event]]] = frozenset({Arrived, Ended})
    arrived: int = 0
    ended: int = 0
    area_ns: int = 0
    now_ns: int = 0

    @property
    def in_flight(self) -> int:
        return self.arrived - self.ended

    def emit(self, event: Event) -> None:
        if event.at_ns < self.now_ns:
            raise Broken(f"the clock went back from {self.now_ns} ns to {event.at_ns} ns")
        self.area_ns += self.in_flight * (event.at_ns - self.now_ns)
        self.now_ns = event.at_ns
        if isinstance(event, Arrived):
            self.arrived += 1
        elif isinstance(event, Ended):
            self.ended += 1


def audit(engine: Engine, recorder: Recorder, census: Census, trace: Trace | None = None) -> None:
    """Raise Broken unless the books of a drained run add up.

    Conservation: every arrival has exactly one end, in total and by model; every prompt token that the trace offered
    is some request's, and no request has more tokens than it asked for. Little's law, exactly, in integers: the area
    under the number in flight is the sum of the sojourns. Each request's times are in order. Quotas and loads are
    back at zero, no replica was busier than time allows, and the cache's bytes are what its blocks sum up to.
    """
    names = ("request_id", "first_token_ns", *ORDER, *TOKENS, *CACHED)
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
    for replica in engine.replicas.values():
        _require(replica.busy_ns <= engine.clock.now_ns(), f"{replica.name} was busy for longer than the run")
    try:
        engine.cache.check_integrity()
    except AssertionError as error:
        raise Broken("the cache's books do not add up") from error
    try:
        engine.quotas.check_integrity()
    except AssertionError as error:
        raise Broken(f"the quotas' books do not add up: {error}") from error


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
    cached = sum(np.where(columns[name] == MISSING, 0, columns[name]) for name in CACHED)
    most = (
        columns["prompt_tokens"] + columns["output_tokens"]
    )  # a later attempt's prompt has the answer so far
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

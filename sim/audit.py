"""Always on: what holds in every run, whatever its traffic and its faults. A breach is a defect of ours."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from engine.engine import Engine
from engine.errors import EngineError
from engine.telemetry import Arrived, Ended, Event
from sim.recorder import MISSING, Recorder


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


def audit(engine: Engine, recorder: Recorder, census: Census) -> None:
    """Raise Broken unless the books of a drained run add up.

    Conservation: every arrival has exactly one end. Little's law, exactly, in integers: the area under the
    number in flight is the sum of the sojourns. Each request's times are in order. Quotas and loads are back at
    zero, no replica was busier than time allows, and the cache's bytes are what its blocks sum up to.
    """
    columns = {name: column.values() for name, column in recorder.columns.items()}
    _require(census.in_flight == 0, f"{census.in_flight} requests have no end")
    ids = columns["request_id"]
    _require(len(np.unique(ids)) == len(ids) == census.arrived, "a request has two ends, or none")
    sojourns_ns = int((columns["finished_ns"] - columns["arrival_ns"]).sum())
    _require(census.area_ns == sojourns_ns, f"Little: area {census.area_ns} ns, sojourns {sojourns_ns} ns")
    _check_order(columns)
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


def _check_order(columns: "dict[str, npt.NDArray[np.int64]]") -> None:
    names = ("arrival_ns", "admitted_ns", "first_token_ns", "finished_ns")
    for before, after in pairwise(names):
        both = (columns[before] != MISSING) & (columns[after] != MISSING)
        _require(bool((columns[before] <= columns[after])[both].all()), f"{after} lies before {before}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)

"""Trouble, on demand: what can be done to a running fleet at a time of the virtual clock."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from engine.clock import to_ns
from engine.engine import Engine
from engine.settings import require
from engine.telemetry import Event

LOOK_AGAIN_NS = 1_000_000


@dataclass(slots=True)
class FaultStruck(Event):
    """A fault was injected. `requests_in_hand`: what the replica held at that moment."""

    kind: ClassVar[str] = "fault"
    fault: str
    replica: str
    requests_in_hand: int


class Fault(Protocol):
    """Something that happens to one replica."""

    replica: str

    async def strike(self, engine: Engine) -> FaultStruck:
        """Let it happen; what happened."""


@dataclass(slots=True)
class Crash:
    """A replica dies, with all that it holds; one whose model is not in memory at that moment holds nothing.

    With `holding` it waits, up to `patience_s`, for a moment at which it has so many requests in its hands:
    the hardest moment to die at, which a lightly loaded replica would otherwise hardly ever be caught in.
    """

    replica: str
    holding: int = 0
    patience_s: float = 0.0

    async def strike(self, engine: Engine) -> FaultStruck:
        clock = engine.clock
        give_up_ns = clock.now_ns() + to_ns(self.patience_s)
        while (in_hand := num_in_hand(self.replica, engine)) < self.holding and clock.now_ns() < give_up_ns:
            await clock.sleep(LOOK_AGAIN_NS)
        if self.replica in engine.replicas:
            engine.replicas[self.replica].crash()
        return FaultStruck(clock.now_ns(), "crash", self.replica, in_hand)


@dataclass(slots=True)
class Recover:
    """A replica comes back, its device empty; one whose model is not in memory comes with that, whole."""

    replica: str

    async def strike(self, engine: Engine) -> FaultStruck:
        if self.replica in engine.replicas:
            engine.replicas[self.replica].recover()
        return FaultStruck(engine.clock.now_ns(), "recover", self.replica, num_in_hand(self.replica, engine))


def num_in_hand(replica: str, engine: Engine) -> int:
    """How many requests that replica holds; none where its model is not in memory."""
    return engine.replicas[replica].num_in_hand if replica in engine.replicas else 0


def crash(replica: str, holding: int = 0, patience_s: float = 0.0) -> Crash:
    """`replica` dies; see Crash."""
    return Crash(replica, holding, patience_s)


def recover(replica: str) -> Recover:
    """`replica` comes back."""
    return Recover(replica)


def check_replica(key: str, replica: str, engine: Engine) -> None:
    """Raise BadSettings when the fleet has no such replica, in memory or not."""
    known = [name for model in engine.registry.all() for name in engine.fleet.names_of(model.key)]
    require(key, replica, replica in known, f"a replica of the fleet: {', '.join(known)}")

"""Trouble, on demand: what can be done to a running fleet at a time of the virtual clock."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from engine.clock import to_ns
from engine.engine import Engine
from engine.errors import BadSettings
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
    """A replica dies, with all that it holds.

    With `holding` it waits, up to `patience_s`, for a moment at which it has so many requests in its hands:
    the hardest moment to die at, which a lightly loaded replica would otherwise hardly ever be caught in.
    """

    replica: str
    holding: int = 0
    patience_s: float = 0.0

    async def strike(self, engine: Engine) -> FaultStruck:
        replica, clock = engine.replicas[self.replica], engine.clock
        give_up_ns = clock.now_ns() + to_ns(self.patience_s)
        while replica.num_in_hand < self.holding and clock.now_ns() < give_up_ns:
            await clock.sleep(LOOK_AGAIN_NS)
        in_hand = replica.num_in_hand
        replica.crash()
        return FaultStruck(clock.now_ns(), "crash", self.replica, in_hand)


@dataclass(slots=True)
class Recover:
    """A replica comes back, its device empty."""

    replica: str

    async def strike(self, engine: Engine) -> FaultStruck:
        replica = engine.replicas[self.replica]
        replica.recover()
        return FaultStruck(engine.clock.now_ns(), "recover", self.replica, replica.num_in_hand)


def crash(replica: str, holding: int = 0, patience_s: float = 0.0) -> Crash:
    """`replica` dies; see Crash."""
    return Crash(replica, holding, patience_s)


def recover(replica: str) -> Recover:
    """`replica` comes back."""
    return Recover(replica)


def check_replica(key: str, replica: str, engine: Engine) -> None:
    """Raise BadSettings when the fleet has no such replica."""
    if replica not in engine.replicas:
        known = ", ".join(engine.replicas)
        raise BadSettings(f"{key} is {replica!r}, but must be a replica of the fleet: {known}")

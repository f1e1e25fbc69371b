"""How a replica is doing, judged from what was seen of it, with hysteresis in both directions."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from engine.settings import HealthSettings


class Health(StrEnum):
    """Only a healthy or degraded replica is given requests."""

    LOADING = "loading"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    UNLOADED = "unloaded"


@dataclass(slots=True)
class HealthChange:
    """A replica's step from one state to another, and what made it."""

    at_ns: int
    replica: str
    before: Health
    after: Health
    cause: str


@dataclass(slots=True)
class _Record:
    health: Health = Health.HEALTHY
    failures_in_a_row: int = 0
    successes_in_a_row: int = 0


class HealthMonitor:
    """Keeps the health of each replica and tells `on_change` of every change, synchronously.

    A lost replica is unhealthy at once: there is nothing to be unsure of. A failed probe may be a hiccup, so
    `fall` of them in a row are needed; `rise` good ones in a row bring the replica back.
    """

    def __init__(self, settings: HealthSettings, on_change: Callable[[HealthChange], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._records: dict[str, _Record] = {}

    def add(self, replica: str) -> None:
        self._records[replica] = _Record()

    def health(self, replica: str) -> Health:
        return self._records[replica].health

    def lost(self, replica: str, now_ns: int) -> None:
        """A request found the replica dead."""
        record = self._records[replica]
        record.successes_in_a_row = 0
        self._move(replica, record, Health.UNHEALTHY, "replica lost", now_ns)

    def probed(self, replica: str, answered: bool, now_ns: int) -> None:
        """A probe was answered in time, or was not."""
        record = self._records[replica]
        if answered:
            record.failures_in_a_row = 0
            record.successes_in_a_row += 1
            if record.successes_in_a_row >= self._settings.rise:
                self._move(replica, record, Health.HEALTHY, "probes answered", now_ns)
        else:
            record.successes_in_a_row = 0
            record.failures_in_a_row += 1
            if record.failures_in_a_row >= self._settings.fall:
                self._move(replica, record, Health.UNHEALTHY, "probes failed", now_ns)

    def _move(self, replica: str, record: _Record, after: Health, cause: str, now_ns: int) -> None:
        if self._settings.enabled and record.health is not after:
            before, record.health = record.health, after
            self._on_change(HealthChange(now_ns, replica, before, after, cause))

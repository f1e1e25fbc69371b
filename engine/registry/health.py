"""How a replica is doing, judged from what was seen of it, with hysteresis in both directions."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from engine.clock import to_ns
from engine.settings import HealthSettings

PARTS: Final = 10  # of the window in which errors are counted; the oldest part goes when a new one begins


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


class ErrorRate:
    """How many of the latest requests failed: counts in the parts of a sliding window, O(1) memory."""

    __slots__ = ("_bad", "_good", "_latest", "_part_ns")

    def __init__(self, window_ns: int) -> None:
        self._part_ns = max(1, window_ns // PARTS)
        self._good = [0] * PARTS
        self._bad = [0] * PARTS
        self._latest = 0

    def count(self, now_ns: int, is_good: bool) -> None:
        part = now_ns // self._part_ns
        if part > self._latest:
            for passed in range(max(self._latest + 1, part - PARTS + 1), part + 1):
                self._good[passed % PARTS] = self._bad[passed % PARTS] = 0
            self._latest = part
        (self._good if is_good else self._bad)[part % PARTS] += 1

    def clear(self) -> None:
        self._good = [0] * PARTS
        self._bad = [0] * PARTS

    def of_at_least(self, requests: int) -> float | None:
        """The share that failed; None where there were fewer requests than that."""
        bad = sum(self._bad)
        total = bad + sum(self._good)
        return bad / total if total >= max(1, requests) else None


@dataclass(slots=True)
class _Record:
    errors: ErrorRate
    health: Health = Health.HEALTHY
    failures_in_a_row: int = 0  # of probes
    successes_in_a_row: int = 0  # of probes, or of trials
    errors_in_a_row: int = 0  # of requests
    is_on_trial: bool = False
    in_flight: int = 0
    earlier: int = 0  # of those, at least so many had entered before the trial
    closures: int = 0  # in a row, with hardly an open time between
    retry_ns: int = 0  # nothing brings it back before
    open_since_ns: int = 0

    @property
    def trials(self) -> int:
        """Requests in flight since the trial began; rather one too many than one too few."""
        return self.in_flight - self.earlier

    @property
    def is_judged(self) -> bool:
        """Whether how a request ends says something new: what ends after a closure had begun before it."""
        return self.trials > 0 if self.is_on_trial else self.health is not Health.UNHEALTHY


class HealthMonitor:
    """Keeps the health of each replica and tells `on_change` of every change, synchronously. O(1) an event.

    A lost replica is unhealthy at once: there is nothing to be unsure of. A failed probe may be a hiccup, so `fall`
    of them in a row are needed; `rise` good ones in a row bring the replica back. Requests that fail on it count too:
    some in a row, or a share of the latest ones. Who was closed for that stays closed for a while, longer each time,
    however well it answers probes. Then good probes bring it back; where nobody probes, a lost one is closed for a
    while too, and then it is *on trial* (half-open): a few requests at a time, `rise` good ones in a row open it, one
    bad one closes it again.
    """

    def __init__(self, settings: HealthSettings, on_change: Callable[[HealthChange], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._records: dict[str, _Record] = {}

    def add(self, replica: str) -> None:
        self._records[replica] = _Record(ErrorRate(to_ns(self._settings.window_s)))

    def remove(self, replica: str) -> None:
        """It is gone: what comes of it from now on is nobody's affair."""
        del self._records[replica]

    def knows(self, replica: str) -> bool:
        return replica in self._records

    def health(self, replica: str) -> Health:
        return self._records[replica].health

    def lost(self, replica: str, now_ns: int) -> None:
        """A request found the replica dead."""
        record = self._records[replica]
        record.successes_in_a_row = 0
        if self._settings.probes:  # they tell soon enough when it is back
            record.is_on_trial = False
            self._move(replica, record, Health.UNHEALTHY, "replica lost", now_ns)
        elif record.health is not Health.UNHEALTHY:
            self._close(replica, record, "replica lost", now_ns)

    def probed(self, replica: str, answered: bool, now_ns: int) -> None:
        """A probe was answered in time, or was not."""
        record = self._records[replica]
        if answered:
            record.failures_in_a_row = 0
            record.successes_in_a_row += 1
            if record.successes_in_a_row >= self._settings.rise and record.health is Health.UNHEALTHY:
                self._open(replica, record, "probes answered", now_ns)
        else:
            record.successes_in_a_row = 0
            record.failures_in_a_row += 1
            if record.failures_in_a_row >= self._settings.fall:
                record.is_on_trial = False
                self._move(replica, record, Health.UNHEALTHY, "probes failed", now_ns)

    def served(self, replica: str, now_ns: int) -> None:
        """A request ended well on it."""
        record = self._records.get(replica)
        if record is None:
            return
        if (record.is_on_trial or record.health is Health.UNHEALTHY) and not record.is_judged:
            return
        record.errors_in_a_row = 0
        record.errors.count(now_ns, True)
        if record.is_on_trial:
            record.successes_in_a_row += 1
            if record.successes_in_a_row >= self._settings.rise:
                self._open(replica, record, "trials ended well", now_ns)
        elif record.health is Health.DEGRADED:
            rate = record.errors.of_at_least(1)  # where few requests come, none of them may have failed
            if rate is not None and rate < self._settings.degraded_error_rate / 2:
                self._move(replica, record, Health.HEALTHY, "fewer requests fail", now_ns)

    def failed(self, replica: str, now_ns: int) -> None:
        """A request failed on it, and it was the replica's fault."""
        record = self._records.get(replica)
        if record is None or not record.is_judged:
            return
        settings = self._settings
        record.errors_in_a_row += 1
        record.errors.count(now_ns, False)
        if record.is_on_trial:
            self._close(replica, record, "a trial failed", now_ns)
        elif record.errors_in_a_row >= settings.errors_in_a_row:
            self._close(replica, record, f"{record.errors_in_a_row} requests in a row failed", now_ns)
        elif (rate := record.errors.of_at_least(settings.window_requests)) is None:
            return
        elif rate >= settings.unhealthy_error_rate:
            self._close(replica, record, f"{rate:.0%} of the latest requests failed", now_ns)
        elif rate >= settings.degraded_error_rate and record.health is Health.HEALTHY:
            self._move(replica, record, Health.DEGRADED, f"{rate:.0%} of the latest requests failed", now_ns)

    def retry_in_ns(self, replica: str, now_ns: int) -> int:
        """How long it stays closed at least, from now on."""
        return max(0, self._records[replica].retry_ns - now_ns)

    def try_again(self, replica: str, now_ns: int) -> None:
        """Put a closed replica on trial: it gets a few requests at a time. Harmless for one that is gone or open."""
        record = self._records.get(replica)
        if record is not None and record.health is Health.UNHEALTHY and now_ns >= record.retry_ns:
            record.is_on_trial, record.earlier, record.successes_in_a_row = True, record.in_flight, 0
            self._move(replica, record, Health.DEGRADED, "on trial", now_ns)

    def enter(self, replica: str) -> bool:
        """Whether a request may go there now. One that may has to `leave`."""
        record = self._records[replica]
        if record.is_on_trial and record.trials >= self._settings.trial_requests:
            return False
        record.in_flight += 1
        return True

    def leave(self, replica: str) -> None:
        """A request that had entered has ended, well or not."""
        record = self._records.get(replica)
        if record is not None and record.in_flight:
            record.in_flight -= 1
            if record.earlier:
                record.earlier -= 1  # nobody knows which one it was: the cautious guess

    def _open(self, replica: str, record: _Record, cause: str, now_ns: int) -> None:
        if now_ns < record.retry_ns:
            return
        record.is_on_trial = False
        record.errors.clear()
        record.open_since_ns = now_ns
        self._move(replica, record, Health.HEALTHY, cause, now_ns)

    def _close(self, replica: str, record: _Record, cause: str, now_ns: int) -> None:
        settings = self._settings
        longest_ns = to_ns(settings.max_retry_after_s)
        if not record.is_on_trial and now_ns - record.open_since_ns > longest_ns:
            record.closures = 0
        record.retry_ns = now_ns + min(to_ns(settings.retry_after_s) << min(record.closures, 40), longest_ns)
        record.closures += 1
        record.errors_in_a_row = record.successes_in_a_row = 0
        record.is_on_trial = False
        record.errors.clear()
        self._move(replica, record, Health.UNHEALTHY, cause, now_ns)

    def _move(self, replica: str, record: _Record, after: Health, cause: str, now_ns: int) -> None:
        if self._settings.enabled and record.health is not after:
            before, record.health = record.health, after
            self._on_change(HealthChange(now_ns, replica, before, after, cause))

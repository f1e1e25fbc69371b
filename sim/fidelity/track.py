"""The track: how slow a machine was at each time of a run, by its yardstick."""

from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field

import numpy as np

from sim.fidelity.steplog import Reading, StepLog
from sim.least_squares import Floats

AROUND = (
    5  # readings of which the mean is taken: one alone is half noise, and a machine changes within a second
)


@dataclass(slots=True)
class Track:
    """How many times as long as at the standard everything took on a machine, by the time; 1 where nobody measured.

    `paces[i]` is that after `i` readings, `times_ns` those at which they began. The yardstick itself took the
    machine, too: `readings`.
    """

    times_ns: list[int] = field(default_factory=list)
    paces: list[float] = field(default_factory=lambda: [1.0])
    readings: list[Reading] = field(default_factory=list)

    def at(self, now_ns: float) -> float:
        """The pace at that time of the run."""
        return self.paces[bisect_right(self.times_ns, now_ns)]

    def over(self, times_ns: Floats) -> Floats:
        """The pace at each of these times."""
        found: Floats = np.array(self.paces)[np.searchsorted(self.times_ns, times_ns, side="right")]
        return found

    def count(self, begins_ns: Floats, ends_ns: Floats) -> Floats:
        """How often the yardstick began in each of these spans."""
        before, after = (np.searchsorted(self.times_ns, times_ns) for times_ns in (begins_ns, ends_ns))
        return (after - before).astype(np.float64)

    def taken_ns(self, begins_ns: Floats, ends_ns: Floats) -> Floats:
        """How much of each of these spans the yardstick took; it had ended in each in which it began."""
        took = [each.ended_ns - each.begun_ns for each in self.readings]
        so_far = np.cumsum(np.array([0, *took], dtype=np.float64))
        before, after = (np.searchsorted(self.times_ns, times_ns) for times_ns in (begins_ns, ends_ns))
        found: Floats = so_far[after] - so_far[before]
        return found

    def has_at(self, times_ns: Floats) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        """Whether the yardstick had the machine at each of these times."""
        if not self.readings:
            return np.zeros(len(times_ns), dtype=np.bool_)
        ends = np.array([each.ended_ns for each in self.readings])
        last = np.searchsorted(self.times_ns, times_ns, side="right") - 1
        found: np.ndarray[tuple[int], np.dtype[np.bool_]] = (last >= 0) & (times_ns < ends[last])
        return found


def standard_ns(logs: Iterable[StepLog]) -> float:
    """What the yardstick took in these runs, in the geometric mean: a spike is not the machine's speed. 0 without."""
    took = [each.took_ns for log in logs for each in log.readings]
    return float(np.exp(np.log(took).mean())) if took else 0.0


def track_of(readings: Listing[Reading], standard: float) -> Track:
    """The track of a run, over what the yardstick takes as a standard, in ns."""
    if not readings or not standard:
        return Track()
    logs = np.concatenate([[0.0], np.cumsum(np.log([each.took_ns / standard for each in readings]))])
    count = len(readings)
    first = np.clip(np.arange(count + 1) - AROUND // 2, 0, max(0, count - AROUND))
    last = np.minimum(first + AROUND, count)
    paces = np.exp((logs[last] - logs[first]) / (last - first))
    return Track([each.begun_ns for each in readings], paces.tolist(), list(readings))

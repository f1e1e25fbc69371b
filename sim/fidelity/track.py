"""The track: how slow a machine was at each time of a run, by its yardstick."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from sim.fidelity.steplog import Reading, StepLog
from sim.least_squares import Floats

AROUND = 5  # readings of which the mean is taken: one alone is half noise, and a machine changes soon
AT_WORK_NS = 10_000_000  # after a step


@dataclass(slots=True)
class Track:
    """How many times as long as at the standard everything took on a machine, by the time; 1 where nobody measured.

    `paces[i]` is that from `times_ns[i - 1]` to `times_ns[i]`. The yardstick took the machine itself: `readings`.
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
        return (self._begun(ends_ns) - self._begun(begins_ns)).astype(np.float64)

    def taken_ns(self, begins_ns: Floats, ends_ns: Floats) -> Floats:
        """How much of each of these spans the yardstick took; it had ended in each in which it began."""
        took = [each.ended_ns - each.begun_ns for each in self.readings]
        so_far = np.cumsum(np.array([0, *took], dtype=np.float64))
        found: Floats = so_far[self._begun(ends_ns)] - so_far[self._begun(begins_ns)]
        return found

    def has_at(self, times_ns: Floats) -> npt.NDArray[np.bool_]:
        """Whether the yardstick had the machine at each of these times."""
        ends = np.array([0, *(each.ended_ns for each in self.readings)], dtype=np.float64)
        found: npt.NDArray[np.bool_] = times_ns < ends[self._begun(times_ns, side="right")]
        return found

    def _begun(self, times_ns: Floats, side: Literal["left", "right"] = "left") -> npt.NDArray[np.int64]:
        """How many readings had begun before each of these times; with `right`, or at it."""
        return np.searchsorted([each.begun_ns for each in self.readings], times_ns, side=side)


def at_work(log: StepLog) -> list[Reading]:
    """The readings of a machine that had just had a step; all of them where these are too few.

    One that wakes from a longer rest is slower than it is at work.
    """
    ended_ns = np.sort([step.ended_ns for step in log.steps])
    begun_ns = np.array([each.begun_ns for each in log.readings])
    before = np.searchsorted(ended_ns, begun_ns, side="right") - 1
    found = [
        reading
        for reading, step in zip(log.readings, before.tolist(), strict=True)
        if step >= 0 and reading.begun_ns - ended_ns[step] < AT_WORK_NS
    ]
    return found if len(found) >= AROUND else log.readings


def standard_ns(logs: Iterable[StepLog]) -> float:
    """What the yardstick took in these runs, in the geometric mean: a spike is not the machine's speed. 0 without."""
    took = [each.took_ns for log in logs for each in at_work(log)]
    return float(np.exp(np.log(took).mean())) if took else 0.0


def track_of(log: StepLog, standard: float) -> Track:
    """The track of a run, over what the yardstick takes as a standard, in ns."""
    if not log.readings or not standard:
        return Track()
    readings = at_work(log)
    logs = np.concatenate([[0.0], np.cumsum(np.log([each.took_ns / standard for each in readings]))])
    count = len(readings)
    first = np.clip(np.arange(count + 1) - AROUND // 2, 0, max(0, count - AROUND))
    last = np.minimum(first + AROUND, count)
    paces = np.exp((logs[last] - logs[first]) / (last - first))
    return Track([each.begun_ns for each in readings], paces.tolist(), list(log.readings))

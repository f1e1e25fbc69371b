"""Where the time of one request went: the parts that sum to its whole, as `sim/breakdown.py` has them for a table."""

from itertools import accumulate

from engine.telemetry.events import Ended

PHASES = ("route", "load", "admit", "retry", "transfer", "queue", "prefill", "decode")
"""What each begins and ends with stands in sim/breakdown.py."""

MARKS = ("loaded_ns", "admitted_ns", "tried_ns", "queued_ns", "started_ns", "first_token_ns")
"""What ends each part but the first, for which there is when the last name was turned to, and the last."""


def bounds_ns(end: Ended, routed_ns: int) -> tuple[list[int], int]:
    """The times at which the phases begin and the last one ends, and how many phases the request has reached.

    `routed_ns`: when the name or model that was turned to last was turned to; its arrival if it was the first.
    """
    begin_ns, last_ns = end.arrival_ns, end.at_ns
    routed_ns = min(max(routed_ns, begin_ns), last_ns)
    marks: list[int] = []
    reached = 0
    for place in range(len(MARKS) - 1, -1, -1):
        mark: int | None = getattr(end, MARKS[place])
        if mark is None or mark < routed_ns:  # of a model before
            mark = routed_ns if reached else last_ns
        elif not reached:
            reached = place + 1
        marks.append(min(mark, last_ns))
    bounds = accumulate((begin_ns, routed_ns, *reversed(marks), last_ns), max)
    return list(bounds), reached + 2

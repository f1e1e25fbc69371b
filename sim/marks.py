"""What befell a run: when replicas crashed and came back, and when the start of a steady run was over."""

from collections.abc import Iterator

import numpy as np

from engine.clock import NS_PER_S
from sim import metrics
from sim.drawing import MARKS
from sim.runs import Run
from sim.stats import MOST_WARM_UP, TooShort, warm_up

STEADY = ("steady", "queue")
"""Scenarios in which nothing happens but traffic: there a start that is over may be told from the rest."""
LEAST_FOR_START = 100
"""Requests, below which nothing is said of the start."""


def marks_of(run: Run) -> list[tuple[float, str, str]]:
    """When, what and to whom, in the order of time."""
    at_ns = run.timeseries["at_ns"].to_numpy()
    found = [
        (int(row), mark, subject)
        for (subject, mark), rows in run.series.items()
        if mark in MARKS
        for row in rows
    ]
    return [(int(at_ns[row]) / NS_PER_S, mark, subject) for row, mark, subject in sorted(found)]


def outages(run: Run) -> Iterator[tuple[float, float, str]]:
    """From each crash to the return of that replica, or to the end of the run."""
    down: dict[str, float] = {}
    for at_s, mark, replica in marks_of(run):
        if mark == "crash":
            down.setdefault(replica, at_s)
        elif mark == "recover" and replica in down:
            yield down.pop(replica), at_s, replica
    for replica, begin_s in down.items():
        yield begin_s, float(run.manifest["virtual_s"]), replica


def start_s(run: Run) -> tuple[float, bool] | None:
    """When the start of a steady run was over, and whether it was at all; None for one that is not to be steady.

    By MSER-5 over the end-to-end times in order of arrival, at least a tenth of the requests. Of a single run this
    is a hint: `sim.replicate analysis=steady` says it of the average of many.
    """
    done = run.whole.completed
    if run.name not in STEADY or len(done) < LEAST_FOR_START or marks_of(run):
        return None
    done = done.sort_values(["arrival_ns", "request_id"])
    arrivals_ns = done["arrival_ns"].to_numpy(dtype=np.float64)
    try:
        share, is_over = warm_up([metrics.e2e_s(done)]), True
    except TooShort:
        share, is_over = MOST_WARM_UP, False
    return float(arrivals_ns[int(share * len(done))]) / NS_PER_S, is_over

"""Overload: more comes than is served, so that whoever comes later waits longer, for as long as it goes on.

A model's *line* is whoever has come and has neither begun nor ended, wherever that is: before a quota, until the
model is in memory, at a replica. Where a system keeps up, its line at the last arrival is what it was at half time,
but for chance. Figures of a run that does not keep up say how long it was, and nothing of the system.
"""

from math import sqrt

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S
from sim.breakdown import MISSING
from sim.detectors.finding import Finding, evidence
from sim.history import Flags, History, Integers
from sim.runs import Run

THRESHOLD = 0.10
"""Of what comes in the second half of the arrivals. Bursts of ordinary traffic leave less."""

SIGMAS = 4.0
"""Standard errors of a line that is as likely to grow as to shrink: what comes less what begins, of as many each."""

WHERE = {"load": "until the model was in memory", "admit": "before a quota", "queue": "at its replicas"}


def detect(run: Run, history: History) -> list[Finding]:
    """One finding for each model whose line keeps growing. O(n log n)."""
    requests = run.requests
    if not len(requests):
        return []
    begun_ns = np.where(history.started_ns == MISSING, history.finished_ns, history.started_ns)
    models = requests["model"].astype(object).fillna(requests["model_requested"]).to_numpy()
    codes, names = pd.factorize(models, sort=True)
    first_ns, last_ns = int(history.arrival_ns.min()), int(history.arrival_ns.max())
    half_ns = (first_ns + last_ns) // 2
    found = []
    for code, name in enumerate(names):
        mine = codes == code
        came = mine & (history.arrival_ns > half_ns)
        lines = [_line(history.arrival_ns[mine], begun_ns[mine], at_ns) for at_ns in (half_ns, last_ns)]
        grown, count = lines[1] - lines[0], int(came.sum())
        if grown < max(THRESHOLD * count, SIGMAS * sqrt(2 * count), 1):
            continue
        grew = f"those who waited grew from {lines[0]} to {lines[1]}, and with them every latency"
        waited_ns = (begun_ns - history.arrival_ns)[came].astype(np.float64)
        found.append(
            Finding(
                "overload",
                f"model {name}",
                min(1.0, grown / count),
                "the requests that came then",
                THRESHOLD,
                "bursts of ordinary traffic leave less",
                half_ns / NS_PER_S,
                last_ns / NS_PER_S,
                count,
                evidence(history.request_id[came], waited_ns),
                f"{count} came while {count - grown} began or gave up: {grew}; most of the waiting was "
                f"{_where(run, came)}",
            )
        )
    return found


def _line(arrival_ns: Integers, begun_ns: Integers, at_ns: int) -> int:
    """How many had come by then and not begun."""
    return int((arrival_ns <= at_ns).sum() - (begun_ns <= at_ns).sum())


def _where(run: Run, rows: Flags) -> str:
    """The part of their time that held these requests up most before they began."""
    spent = {part: int(run.parts[f"{part}_ns"].to_numpy()[rows].sum()) for part in WHERE}
    return WHERE[max(spent, key=lambda part: spent[part])]

"""Priority inversion: somebody of lower priority was started while somebody of higher priority waited there.

Counted where the request stood in the same line before the other one was started. Who came first and was started
before the higher one came is no inversion: nobody who runs is interrupted. A line that is first come, first served
inverts as soon as priorities differ in it, and that is said too: somebody gave priorities, and they had no effect.
"""

import numpy as np

from sim.detectors.finding import Finding, evidence, some, span_s
from sim.history import Floats, History, Integers, Lane

THRESHOLD = 0.05
"""Of the waiting of those who have somebody below them. Less is what a fleet of several lines cannot help: a request
may come to a line at the moment at which another one is taken out of it."""

LEAST = 5
"""Requests that were overtaken: fewer are an accident."""


def detect(history: History) -> list[Finding]:
    """One finding for each replica at which priorities were turned round. O(n log n) for each priority."""
    found = []
    for name, lane in zip(history.replicas, history.lanes, strict=True):
        priority = history.priority[lane.rows]
        levels = np.unique(priority)
        if len(levels) <= 1:
            continue
        overtaken_ns, overtakers = _overtaken(lane, priority, levels)
        above = priority > levels[0]
        waits_ns = (lane.started_ns - lane.queued_ns)[above]
        hit = np.flatnonzero(overtaken_ns > 0)
        total_ns = int(waits_ns.sum())
        severity = float(overtaken_ns.sum()) / total_ns if total_ns else 0.0
        if len(hit) < LEAST or severity < THRESHOLD:
            continue
        begin_s, end_s = span_s(lane.queued_ns[hit])
        found.append(
            Finding(
                "priority inversion",
                f"replica {name}",
                severity,
                "the waiting of requests of higher priority",
                THRESHOLD,
                "less is the moment at which a line hands out its next one",
                begin_s,
                end_s,
                len(hit),
                evidence(history.request_id[lane.rows[hit]], overtaken_ns[hit]),
                f"{some(len(hit), 'request')} waited while others of lower priority went first, "
                f"{some(int(overtakers[hit].sum()), 'time')}",
            )
        )
    return found


def _overtaken(lane: Lane, priority: Integers, levels: Integers) -> tuple[Floats, Integers]:
    """How long each waited from the first start of lower priority on, and how many such starts there were."""
    waited_ns, starts = np.zeros(len(priority)), np.zeros(len(priority), np.int64)
    for level in levels[1:]:
        ours = np.flatnonzero(priority == level)
        lower = np.sort(lane.started_ns[priority < level])
        first = np.searchsorted(lower, lane.queued_ns[ours], side="right")
        last = np.searchsorted(lower, lane.started_ns[ours], side="left")
        hit = last > first
        starts[ours[hit]] = (last - first)[hit]
        waited_ns[ours[hit]] = lane.started_ns[ours[hit]] - lower[first[hit]]
    return waited_ns, starts

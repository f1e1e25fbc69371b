"""The pictures of a run in the order of a report, what they show, and which of them would show nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from sim.folder import put
from sim.plots.beside import beside, none_beside
from sim.plots.cache import hit_ratio_over_time, models_in, tier_bytes, tiers_of
from sim.plots.frame import png
from sim.plots.gantt import gantt
from sim.plots.latency import latency_cdf, latency_over_time
from sim.plots.load import load_over_time, no_load, served_by_replica
from sim.plots.phases import what_the_slow_wait_for, where_time_goes
from sim.plots.quota import no_quotas, quota_use
from sim.runs import Run

plots: dict[str, Callable[[Run], Figure]] = {
    "beside": beside,
    "served_by_replica": served_by_replica,
    "latency_over_time": latency_over_time,
    "latency_cdf": latency_cdf,
    "where_time_goes": where_time_goes,
    "what_the_slow_wait_for": what_the_slow_wait_for,
    "load_over_time": load_over_time,
    "hit_ratio_over_time": hit_ratio_over_time,
    "tier_bytes": tier_bytes,
    "quota_use": quota_use,
    "gantt": gantt,
}
CAPTIONS = {
    "beside": "What the runs beside this one made of the same requests, less this one, with 95 % intervals.",
    "served_by_replica": "Who served the requests by the time of their arrival; an outage is shaded.",
    "latency_over_time": "Every request by its arrival; a cross is a request that a second replica had to finish.",
    "latency_cdf": "The share of requests that were at least so fast; TPOT is the mean time between tokens.",
    "where_time_goes": "The parts of the mean time; those of a request sum to its time exactly.",
    "what_the_slow_wait_for": "The parts of the time by how slow requests were; the slowest percent stands lowest.",
    "load_over_time": "Sequences and tokens on each replica; in a long run their means, and a line for the most.",
    "hit_ratio_over_time": "The part of the prompts that needed no prefill, by model and by tenant.",
    "tier_bytes": "What is held, by model, and the capacity of each tier.",
    "quota_use": "The highest use of each limit, its soft limits, and bands for degradation modes.",
    "gantt": "Single requests on the replica that had them last.",
}


def _nothing_ended(run: Run) -> str | None:
    return None if len(run.requests) else "no request has ended"


def _nothing_completed(run: Run) -> str | None:
    return None if len(run.whole.completed) else "no request has completed"


def _no_cache(run: Run) -> str | None:
    return None if tiers_of(run) else "there was no cache"


def _nothing_held(run: Run) -> str | None:
    if not tiers_of(run):
        return "there was no cache"
    return None if models_in(run) else "no tier ever held anything"


WHY_NOT: dict[str, Callable[[Run], str | None]] = {
    "beside": none_beside,
    "served_by_replica": _nothing_ended,
    "latency_over_time": _nothing_completed,
    "latency_cdf": _nothing_completed,
    "where_time_goes": _nothing_completed,
    "what_the_slow_wait_for": _nothing_completed,
    "load_over_time": no_load,
    "hit_ratio_over_time": _no_cache,
    "tier_bytes": _nothing_held,
    "quota_use": no_quotas,
    "gantt": _nothing_ended,
}
"""Says why a picture of that run would show nothing; None when it shows something."""


def left_out(run: Run) -> dict[str, str]:
    """The pictures that would show nothing, and why."""
    reasons = {name: WHY_NOT[name](run) for name in plots}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def save_all(run: Run, folder: Path) -> list[Path]:
    """Every picture that shows something as a PNG in `folder`, which is made. The same run gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, data in drawn(run):
        path = folder / f"{name}.png"
        put(path, data)
        paths.append(path)
    return paths


def drawn(run: Run) -> Iterator[tuple[str, bytes]]:
    """Every picture that shows something, by name, as a PNG."""
    missing = left_out(run)
    for name, plot in plots.items():
        if name not in missing:
            yield name, png(plot(run))

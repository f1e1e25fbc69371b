"""A run in steps of time: requests by their arrival, samples of the series, few enough to be seen."""

from typing import Any

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S
from sim.marks import marks_of
from sim.metrics import Floats
from sim.runs import Run

MOST_BINS = 240
LOADS = ["running", "waiting", "tokens_in_flight"]


def seconds(times_ns: "pd.Series[Any]") -> Floats:
    return times_ns.to_numpy(dtype=np.float64) / NS_PER_S


def edges_of(run: Run, most: int = MOST_BINS) -> Floats:
    """Edges of time bins: a second each, or longer ones so that there are about `most` of them."""
    last_s = int(run.requests["arrival_ns"].max()) / NS_PER_S if len(run.requests) else 1.0
    width_s = max(1.0, np.ceil(last_s / most))
    return np.arange(0.0, last_s + 2 * width_s, width_s)[: int(last_s // width_s) + 2]


def each_bin(edges: Floats) -> str:
    width_s = edges[1] - edges[0]
    return "each second" if width_s == 1 else f"each {width_s:g} s"


def counts_of(requests: pd.DataFrame, edges: Floats, weights: Floats | None = None) -> Floats:
    """Requests (or their weights) a second, by arrival."""
    counts, _ = np.histogram(seconds(requests["arrival_ns"]), bins=edges, weights=weights)
    return counts / np.diff(edges)


def points_of(run: Run, subject: str, *metrics: str) -> tuple[Floats, Floats]:
    """When something was seen of a subject, in s, and what: a row a metric, 0 where that was not seen then."""
    series, found = run.timeseries, [run.series.get((subject, metric), ()) for metric in metrics]
    at_ns, values = series["at_ns"].to_numpy(), series["value"].to_numpy()
    times_ns = np.unique(np.concatenate([at_ns[np.asarray(rows, dtype=np.intp)] for rows in found]))
    table = np.zeros((len(metrics), len(times_ns)))
    for line, rows in zip(table, found, strict=True):
        if len(rows):
            line[np.searchsorted(times_ns, at_ns[rows])] = values[rows]  # of two at one time, the last
    return times_ns / NS_PER_S, table


def binned(times_s: Floats, values: Floats, most: int = MOST_BINS) -> tuple[Floats, Floats, Floats]:
    """Edges, and between them the mean and the highest of each row of `values`: at most `most` bins."""
    if not len(times_s):
        return times_s, values, values
    starts = np.arange(0, len(times_s), -(-len(times_s) // most))
    edges = np.append(times_s[starts], times_s[-1])
    means = np.add.reduceat(values, starts, axis=1) / np.diff(np.append(starts, len(times_s)))
    return edges, means, np.maximum.reduceat(values, starts, axis=1)


def is_thinned(times_s: Floats, most: int = MOST_BINS) -> bool:
    """Whether a bin has more than one sample, so that its mean and its highest differ."""
    return len(times_s) > most


def shown_replicas(replicas: list[str], run: Run, most: int) -> tuple[list[str], str]:
    """At most so many of these, those first to which something happened; and, where some are left out, how many."""
    if len(replicas) <= most:
        return replicas, ""
    struck = dict.fromkeys(replica for _, _, replica in marks_of(run))
    ordered = [name for name in struck if name in replicas]
    chosen = set([*ordered, *(name for name in replicas if name not in struck)][:most])
    return [name for name in replicas if name in chosen], f" ({most} of {len(replicas)} replicas)"

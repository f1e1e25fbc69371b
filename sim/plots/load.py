"""Who served, and how full each replica was."""

import numpy as np
from matplotlib.figure import Figure

from sim.plots.bins import (
    LOADS,
    binned,
    counts_of,
    each_bin,
    edges_of,
    is_thinned,
    points_of,
    shown_replicas,
)
from sim.plots.frame import COLOURS, Frame, Look, colour, of_run, round_ticks, steps
from sim.runs import Run

MOST_REPLICAS = 8


def served_by_replica(run: Run) -> Figure:
    """Who served: requests a second by arrival, a panel a replica; below them those that were not completed."""
    edges, done = edges_of(run), run.whole.completed
    lost = run.requests[run.requests["outcome"] != "completed"]
    replicas, left_out = shown_replicas(run.replicas, run, MOST_REPLICAS)
    title = f"Who served the requests that arrived in {each_bin(edges)}{left_out}"
    frame = Frame(title, of_run(run), len(replicas) + bool(len(lost)))
    frame.over_time(run)
    served = [counts_of(done.loc[done["replica"] == replica], edges) for replica in replicas]
    highest = max((float(counts.max()) for counts in served), default=0.0)
    for index, (replica, axes) in enumerate(zip(replicas, frame.panels, strict=False)):
        steps(axes, served[index], edges, color=colour(index))
        axes.set_ylabel(f"{replica}\nrequests/s", fontsize=9)
        axes.set_ylim(0, 1.05 * (highest or 1.0))  # one scale for all of them
        frame.mark(run, axes, only=replica)
    if len(lost):
        steps(frame.panels[-1], counts_of(lost, edges), edges, color="black")
        frame.panels[-1].set_ylabel("not completed\nrequests/s", fontsize=9)
        frame.panels[-1].set_ylim(0, None)
    for axes in frame.panels:
        axes.yaxis.set_major_locator(round_ticks())
    return frame.done()


def load_over_time(run: Run) -> Figure:
    """Sequences running and waiting, and tokens in flight: a row a replica, on the same scales.

    Of a long run each step is a mean of many samples; a thin line then shows the most that any of them was.
    """
    replicas, left_out = shown_replicas(run.replicas, run, MOST_REPLICAS)
    frame = Frame(
        f"Queue and work in flight on each replica{left_out}",
        of_run(run),
        len(replicas),
        columns=2,
        sharey=True,
    )
    frame.over_time(run)
    for index, replica in enumerate(replicas):
        sequences, tokens = frame.panels[2 * index : 2 * index + 2]
        times_s, samples = points_of(run, replica, *LOADS)
        both = samples[0] + samples[1]
        edges, means, peaks = binned(times_s, np.vstack([samples, both]))
        running, waiting, in_flight, _ = means
        if len(edges):
            steps(sequences, running, edges, color=COLOURS[0], label="running")
            look: Look = {"color": COLOURS[1], "label": "waiting"}
            steps(sequences, running + waiting, edges, below=running, **look)
            steps(tokens, in_flight, edges, color=COLOURS[4], label="tokens in flight")
        if is_thinned(times_s):
            for axes, most in ((sequences, peaks[3]), (tokens, peaks[2])):
                steps(axes, most, edges, outline=True, color="black", linewidth=0.5, label="most at a time")
        sequences.set_ylabel(f"{replica}\nsequences", fontsize=9)
        tokens.set_ylabel("tokens in flight", fontsize=9)
        frame.mark(run, sequences, only=replica)
        frame.mark(run, tokens, only=replica, named=False)
    for axes, whole in zip(frame.panels[:2], (True, False), strict=True):  # the others share their scales
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.yaxis.set_major_locator(round_ticks(whole=whole))
    return frame.done(*frame.panels[:2])


def no_load(run: Run) -> str | None:
    """Why there is nothing to see in `load_over_time`."""
    values = run.timeseries["value"].to_numpy()
    seen = any((values[rows] > 0).any() for (_, metric), rows in run.series.items() if metric in LOADS)
    return None if seen else "no replica was ever seen at work"

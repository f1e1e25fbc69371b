"""What the time of requests was spent on."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.telemetry.phases import PHASES
from sim.breakdown import by_slowness, means_s
from sim.metrics import Floats
from sim.plots.frame import Frame, of_run, room_for
from sim.runs import Run

PHASE_COLOURS = ("#000000", "#999999", "#F0E442", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#0072B2")
MOST_BARS_OF_REPLICAS = 20
BAR = 0.32  # inches


def where_time_goes(run: Run) -> Figure:
    """The parts of the mean end-to-end time of completed requests: of all, and replica by replica."""
    done = run.whole.completed
    means = pd.DataFrame()
    if len(done):
        busiest = done["replica"].value_counts().index[:MOST_BARS_OF_REPLICAS]
        parts, by = run.parts.loc[done.index], done["replica"]
        shown = by.isin(busiest)
        means = pd.concat([means_s(parts), means_s(parts[shown], by[shown])])
    names = [str(name) for name in means.index]
    frame = Frame(
        "Where the time of completed requests goes, mean by replica",
        of_run(run),
        height=max(1.2, BAR * len(names)),
        left=room_for(names),
    )
    _stack(frame, frame.panels[0], names, [means[f"{name}_s"].to_numpy() for name in PHASES] if names else [])
    frame.label_x("mean time, s")
    return frame.done()


def what_the_slow_wait_for(run: Run) -> Figure:
    """The parts of the time of completed requests, by how slow they were: each bar sums to 100 %."""
    done = run.whole.completed
    names: list[str] = []
    widths: list[Floats] = []
    if len(done):
        buckets = by_slowness(run.parts.loc[done.index])
        totals = buckets.drop(columns="count").sum(axis=1).to_numpy()
        rows = zip(buckets.index, buckets["count"], totals, strict=True)
        names = [f"{name}\nn={count:.0f}, mean {time_of(total)}" for name, count, total in rows]
        for name in PHASES:
            part = buckets[f"{name}_s"].to_numpy()
            widths.append(np.divide(100 * part, totals, out=np.zeros(len(part)), where=totals > 0))
    frame = Frame(
        "What completed requests spend their time on, by how slow they were",
        of_run(run),
        height=max(1.2, 1.4 * BAR * len(names)),
        left=room_for(names),
    )
    _stack(frame, frame.panels[0], names, widths)
    frame.panels[0].set_xlim(0, 100)
    frame.label_x("share of the end-to-end time, %")
    return frame.done()


def _stack(frame: Frame, axes: Axes, names: list[str], widths: list[Floats]) -> None:
    """A bar a name, from top to bottom, each with its parts beside each other."""
    axes.grid(visible=False, axis="y")
    if not names:
        axes.set_yticks([])
        frame.say(axes, "no request has completed")
        return
    left, places = np.zeros(len(names)), np.arange(len(names))[::-1]
    for index, (phase, each) in enumerate(zip(PHASES, widths, strict=True)):
        if each.any():
            axes.barh(places, each, left=left, color=PHASE_COLOURS[index], label=phase, height=0.8)
        left = left + each
    axes.set_yticks(places, names)


def time_of(seconds: float) -> str:
    """A duration in the unit in which people would say it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"

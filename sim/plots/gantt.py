"""Single requests as bars."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from sim.drawing import pack
from sim.marks import marks_of
from sim.metrics import Floats
from sim.plots.bins import seconds, shown_replicas
from sim.plots.frame import COLOURS, Frame, of_run, round_ticks
from sim.plots.load import MOST_REPLICAS
from sim.runs import Run

MOST_BARS = 120
HEIGHT = 0.8
KINDS = {"waiting": "#BBBBBB", "prefill": COLOURS[1], "decode": COLOURS[0], "not completed": COLOURS[5]}


def gantt(run: Run) -> Figure:
    """Each request around the first mark as a bar on the replica that had it last: waiting, prefill, decode."""
    shown = around_first_mark(run)
    busy = set(shown["replica"])
    replicas, left_out = shown_replicas([name for name in run.replicas if name in busy], run, MOST_REPLICAS)
    where = "around the first mark" if marks_of(run) else "from the first on"
    frame = Frame(f"Requests one by one, {where}{left_out}", of_run(run), max(1, len(replicas)), sharey=True)
    frame.over_time(run)
    if len(shown):
        begin_s, end_s = seconds(shown["arrival_ns"]).min(), seconds(shown["finished_ns"]).max()
        frame.panels[0].set_xlim(begin_s, max(end_s, begin_s + 1e-3))
    else:
        frame.say(frame.panels[0], "no replica has ended a request")
    highest = 0
    for replica, axes in zip(replicas, frame.panels, strict=False):
        highest = max(highest, _draw(axes, shown[shown["replica"] == replica]))
        axes.set_ylabel(f"{replica}\nslot", fontsize=9)
        frame.mark(run, axes, only=replica)
    frame.panels[0].set_ylim(-0.6, highest + 0.6)  # the others share it
    frame.panels[0].yaxis.set_major_locator(round_ticks(whole=True))
    return frame.done()


def _draw(axes: Axes, rows: pd.DataFrame) -> int:
    """The bars of a replica; the highest slot that they need."""
    arrival, started = seconds(rows["arrival_ns"]), seconds(rows["started_ns"])
    first, finished = seconds(rows["first_token_ns"]), seconds(rows["finished_ns"])
    slots, done = pack(arrival, finished), (rows["outcome"] == "completed").to_numpy()
    begun = np.fmin(started, first)  # the first token may come from a replica that was lost afterwards
    spans = (
        ("waiting", done, arrival, begun),
        ("prefill", done, begun, first),
        ("decode", done, first, finished),
        ("not completed", ~done, arrival, finished),
    )
    for kind, which, begin, end in spans:
        if which.any():
            bars = PolyCollection(
                list(_corners(begin[which], end[which], slots[which])), facecolors=KINDS[kind], label=kind
            )
            axes.add_collection(bars, autolim=False)
    return int(slots.max(initial=0))


def _corners(begin: Floats, end: Floats, slots: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> Floats:
    """Of a bar each; one collection draws them all, where a patch each takes twenty times as long."""
    low, high = slots - HEIGHT / 2, slots + HEIGHT / 2
    corners: Floats = np.stack([begin, low, begin, high, end, high, end, low], axis=1).reshape(-1, 4, 2)
    return corners


def around_first_mark(run: Run) -> pd.DataFrame:
    """The requests that a replica had and that arrived nearest to the first mark, or first of all."""
    served = run.requests[run.requests["replica"].notna()].sort_values("arrival_ns", kind="stable")
    marked = marks_of(run)
    centre = int(np.searchsorted(seconds(served["arrival_ns"]), marked[0][0])) if marked else 0
    begin = max(0, centre - MOST_BARS // 3)
    return served.iloc[begin : begin + MOST_BARS]

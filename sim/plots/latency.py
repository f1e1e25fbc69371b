"""How long requests took: one by one, and their distributions."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sim import metrics
from sim.certainty import LATENCIES
from sim.plots.bins import seconds
from sim.plots.frame import COLOURS, STYLES, Frame, Look, logarithmic_if_possible, of_run
from sim.runs import Run
from sim.stats import quantile_interval

MOST_POINTS = 4_000
MOST_STEPS = 1_000
LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def latency_over_time(run: Run) -> Figure:
    """E2E and TTFT of each request over its arrival; second tries stand out."""
    frame = Frame("Latency of each request, by arrival", of_run(run), 2)
    frame.over_time(run)
    done, step = thinned(run.whole.completed)
    again = (done["attempts"] > 1).to_numpy()
    times = seconds(done["arrival_ns"])
    first = "first try" if step == 1 else f"first try (one in {step} is shown)"
    sides = (("E2E", metrics.e2e_s(done)), ("TTFT", metrics.ttft_s(done)))
    for axes, (name, values) in zip(frame.panels, sides, strict=True):
        for which, shape, size, chosen, label in (
            (~again, "o", 2.5, COLOURS[0], first),
            (again, "x", 5.0, COLOURS[5], "second try"),
        ):
            if which.any():
                look: Look = {"markersize": size, "color": chosen, "label": label}
                look |= {"alpha": 0.5, "markeredgewidth": 0} if shape == "o" else {"markeredgewidth": 1.3}
                axes.plot(times[which], values[which] * 1e3, shape, **look)
        axes.set_ylabel(f"{name}, ms")
        if (values > 0).any():
            logarithmic_if_possible(axes.yaxis, values * 1e3)
        else:  # no logarithm of nothing
            axes.set_ylim(0, 1)
    if not len(done):
        frame.say(frame.panels[0], "no request has completed")
    for axes in frame.panels:
        frame.mark(run, axes, named=axes is frame.panels[0])
    return frame.done()


def latency_cdf(run: Run) -> Figure:
    """The whole distribution of TTFT, TPOT (the mean time between tokens of a request) and E2E."""
    frame = Frame(
        "Share of completed requests that took at most so long",
        of_run(run, "bars: 95 % intervals of percentiles"),
        height=3.6,
    )
    (axes,) = frame.panels
    done = run.whole.completed.sort_values(["arrival_ns", "request_id"])
    latencies = {name.upper(): of(done) for name, of in LATENCIES.items()}
    for index, (name, values) in enumerate(latencies.items()):
        if len(values):
            ordered = np.sort(values) * 1e3
            label = f"{name}, n={len(values)}"
            shares = np.arange(1, len(ordered) + 1) / len(ordered)
            few = _few(len(ordered))
            look: Look = {"color": COLOURS[index], "linestyle": STYLES[index], "label": label}
            axes.step(ordered[few], shares[few], where="post", linewidth=1.5, **look)
            for level in LEVELS.values():
                ends = quantile_interval(values, level)
                if ends is not None:
                    spans: Look = {"color": COLOURS[index], "alpha": 0.35, "linewidth": 6}
                    axes.plot(np.array(ends) * 1e3, [level, level], solid_capstyle="butt", **spans)
    logarithmic_if_possible(axes.xaxis, np.concatenate([1e3 * values for values in latencies.values()]))
    if not any(map(len, latencies.values())):
        frame.say(axes, "no request has completed")
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, *LEVELS.values()], ["0", "p25", *LEVELS])
    frame.label_x("latency, ms")
    return frame.done()


def thinned(requests: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """At most MOST_POINTS of them, one in so many, and all that needed a second try."""
    step = max(1, -(-len(requests) // MOST_POINTS))
    shown = (np.arange(len(requests)) % step == 0) | (requests["attempts"] > 1).to_numpy()
    return requests.loc[shown], step


def _few(count: int) -> "np.ndarray[tuple[int], np.dtype[np.intp]]":
    """Places of at most MOST_STEPS values in order, the last percent whole: there each one is seen."""
    if count <= MOST_STEPS:
        return np.arange(count)
    tail = max(count - count // 100, count - MOST_STEPS // 2)
    body = np.linspace(0, tail, MOST_STEPS - (count - tail), dtype=np.intp)
    return np.unique(np.concatenate([body, np.arange(tail, count)]))

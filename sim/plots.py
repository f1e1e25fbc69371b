"""Pictures of a run: each a function of a Run that returns a matplotlib Figure, readable by colour-blind eyes.

Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from engine.clock import NS_PER_S
from sim import metrics
from sim.metrics import Floats
from sim.runs import Run

# Okabe and Ito, "Color universal design" (2008); black is kept for marks
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
STYLES = ("-", "--", "-.", ":")
MARKS = {"crash": "#D55E00", "unhealthy": "#000000", "recover": "#009E73", "healthy": "#0072B2"}
MOST_POINTS = 5_000
MOST_BARS = 120
DPI = 110
TIME_LABEL = "virtual time, s"


def served_by_replica(run: Run) -> Figure:
    """Who served: requests by second of arrival, a panel a replica; lost and refused ones on top of all."""
    replicas = run.replicas
    title = "Who served the requests that arrived in each second"
    figure, panels = _panels(run, title, len(replicas), sharey=True)
    edges = _edges(run)
    for index, (replica, axes) in enumerate(zip(replicas, panels, strict=True)):
        done = run.whole.completed
        counts = _counts(done.loc[done["replica"] == replica], edges)
        axes.bar(
            edges[:-1], counts, width=np.diff(edges), align="edge", color=_colour(index), label="completed"
        )
        axes.set_ylabel(f"{replica}\nrequests/s")
        axes.set_ylim(0, None)
        _draw_marks(run, axes, only=replica, labelled=True)
    lost = run.requests[run.requests["outcome"] != "completed"]
    if len(lost):
        panels[0].step(
            edges[:-1], _counts(lost, edges), where="post", color="black", label="not completed, fleet"
        )
        panels[0].legend(loc="upper right", fontsize=8)
    panels[-1].set_xlabel(TIME_LABEL)
    return figure


def latency_over_time(run: Run) -> Figure:
    """E2E and TTFT of each request over its arrival; second tries stand out."""
    figure, (upper, lower) = _panels(run, "Latency of each request, by arrival", 2)
    done = _thinned(run.whole.completed)
    for axes, name, values in ((upper, "E2E", metrics.e2e_s(done)), (lower, "TTFT", metrics.ttft_s(done))):
        again = (done["attempts"] > 1).to_numpy()
        times = _seconds(done["arrival_ns"])
        axes.scatter(times[~again], values[~again] * 1e3, s=6, color=COLOURS[0], alpha=0.5, label="first try")
        axes.scatter(
            times[again], values[again] * 1e3, s=30, marker="x", color=COLOURS[5], label="second try"
        )
        axes.set_ylabel(f"{name}, ms")
        if len(done):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _draw_marks(run, axes, labelled=axes is upper)
    lower.legend(loc="upper right", fontsize=8)
    lower.set_xlabel(TIME_LABEL)
    return figure


def latency_cdf(run: Run) -> Figure:
    """The whole distribution of TTFT, TPOT and E2E."""
    figure, (axes,) = _panels(run, "Latency of the completed requests", 1)
    done = run.whole.completed
    latencies = (("TTFT", metrics.ttft_s(done)), ("TPOT", metrics.tpot_s(done)), ("E2E", metrics.e2e_s(done)))
    for index, (name, values) in enumerate(latencies):
        if len(values):
            ordered = np.sort(values) * 1e3
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(ordered, share, where="post", color=COLOURS[index], linestyle=STYLES[index], label=name)
    if len(done):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend(loc="lower right")
    axes.set_yticks([0, 0.25, 0.5, 0.9, 0.99], ["0", "25 %", "p50", "p90", "p99"])
    axes.set_xlabel("latency, ms")
    return figure


def load_over_time(run: Run) -> Figure:
    """Running and waiting sequences, and tokens in flight, of each replica."""
    figure, panels = _panels(run, "Load of each replica", 3)
    titles = (
        ("running", "running\nsequences"),
        ("waiting", "waiting\nsequences"),
        ("tokens_in_flight", "tokens\nin flight"),
    )
    for axes, (metric, label) in zip(panels, titles, strict=True):
        for index, replica in enumerate(run.replicas):
            points = _series(run, metric, replica)
            axes.step(
                _seconds(points["at_ns"]),
                points["value"],
                where="post",
                color=_colour(index),
                linestyle=STYLES[index % len(STYLES)],
                label=replica,
            )
        axes.set_ylabel(label)
        axes.set_ylim(0, None)
        _draw_marks(run, axes, labelled=axes is panels[0])
    panels[1].legend(loc="upper right", fontsize=8, ncols=6)
    panels[-1].set_xlabel(TIME_LABEL)
    return figure


def cache_over_time(run: Run) -> Figure:
    """What the prefix cache saves, and what it holds."""
    figure, (upper, lower) = _panels(run, "Prefix cache", 2)
    edges, done = _edges(run), run.whole.completed
    prompt = _counts(done, edges, done["prompt_tokens"].to_numpy(dtype=float))
    cached = _counts(done, edges, metrics.cached_tokens(done).astype(float))
    ratio = np.divide(cached, prompt, out=np.full(len(prompt), np.nan), where=prompt > 0)
    upper.step(edges[:-1], 100 * ratio, where="post", color=COLOURS[0])
    upper.set_ylabel("prompt tokens\nfound, %")
    upper.set_ylim(0, 100)
    held, capacity = _series(run, "bytes", "cache"), _series(run, "capacity_bytes", "cache")
    lower.fill_between(
        _seconds(held["at_ns"]), held["value"] / 2**20, step="post", color=COLOURS[4], label="held"
    )
    lower.plot(
        _seconds(capacity["at_ns"]),
        capacity["value"] / 2**20,
        color="black",
        linestyle="--",
        label="capacity",
    )
    lower.set_ylabel("RAM tier, MiB")
    lower.set_ylim(0, None)
    lower.legend(loc="center right", fontsize=8)
    lower.set_xlabel(TIME_LABEL)
    for axes in (upper, lower):
        _draw_marks(run, axes, labelled=axes is upper)
    return figure


def gantt(run: Run) -> Figure:
    """Each request around the first mark as a bar on the replica that finished it: waiting, prefill, decode."""
    figure, panels = _panels(
        run, "Requests one by one, around the first mark", len(run.replicas), sharey=True
    )
    shown = _around_first_mark(run)
    for replica, axes in zip(run.replicas, panels, strict=True):
        rows = shown[shown["replica"] == replica]
        arrival, started = _seconds(rows["arrival_ns"]), _seconds(rows["started_ns"])
        first, finished = _seconds(rows["first_token_ns"]), _seconds(rows["finished_ns"])
        slots = pack(arrival, finished)
        begun = np.minimum(started, first)  # the first token may come from a replica that was lost afterwards
        spans = (
            (arrival, begun, "#BBBBBB", "waiting"),
            (begun, first, COLOURS[1], "prefill"),
            (first, finished, COLOURS[0], "decode"),
        )
        for begin, end, colour, label in spans:
            axes.barh(slots, end - begin, left=begin, height=0.8, color=colour, label=label)
        axes.set_ylabel(f"{replica}\nslot")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if len(shown):
            axes.set_xlim(_seconds(shown["arrival_ns"]).min(), _seconds(shown["finished_ns"]).max())
        _draw_marks(run, axes, labelled=axes is panels[0], only=replica)
    panels[0].legend(loc="upper right", fontsize=8, ncols=3)
    panels[-1].set_xlabel(TIME_LABEL)
    return figure


plots: dict[str, Callable[[Run], Figure]] = {
    "served_by_replica": served_by_replica,
    "latency_over_time": latency_over_time,
    "latency_cdf": latency_cdf,
    "load_over_time": load_over_time,
    "cache_over_time": cache_over_time,
    "gantt": gantt,
}
CAPTIONS = {
    "served_by_replica": "Who served the requests of each second; the outage is shaded.",
    "latency_over_time": "Every request by its arrival; a cross is a request that a second replica had to finish.",
    "latency_cdf": "The share of requests that were at least so fast.",
    "load_over_time": "Sequences running and waiting, and tokens in flight, as the router counts them.",
    "cache_over_time": "The part of the prompts that needed no prefill, and the memory that this takes.",
    "gantt": "Single requests on the replica that finished them.",
}


def save_all(run: Run, folder: Path) -> list[Path]:
    """Every picture as a PNG in `folder`, which is made. The same run gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, plot in plots.items():
        path = folder / f"{name}.png"
        plot(run).savefig(path, dpi=DPI, metadata={"Software": None})
        paths.append(path)
    return paths


def pack(begin: Floats, end: Floats) -> npt.NDArray[np.intp]:
    """A slot for each interval, the lowest free one in order of `begin`: no two in one slot overlap."""
    slots = np.zeros(len(begin), dtype=np.intp)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for index in np.argsort(begin, kind="stable"):
        while busy and busy[0][0] <= begin[index]:
            heappush(free, heappop(busy)[1])
        slot = heappop(free) if free else len(busy)
        heappush(busy, (float(end[index]), slot))
        slots[index] = slot
    return slots


def _panels(run: Run, title: str, count: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A titled figure with `count` panels over one time axis."""
    figure = Figure(figsize=(9, 1.2 + 1.9 * max(count, 2)), layout="constrained")
    FigureCanvasAgg(figure)
    manifest = run.manifest
    engine = f"{manifest['strategy']} on {manifest['executor']}"
    requests = f"n={len(run.requests)}" if len(run.requests) else "no request has ended"
    figure.suptitle(f"{title}\n{run.name}: {requests}, seed {manifest['seed']}, {engine}", fontsize=11)
    panels = figure.subplots(count, 1, sharex=True, sharey=sharey, squeeze=False)[:, 0]
    for axes in panels:
        axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels)


def _draw_marks(run: Run, axes: Axes, *, only: str | None = None, labelled: bool) -> None:
    """Vertical lines where a replica crashed, fell ill in the router's eyes, came back, was well; outages shaded."""
    for at_s, mark, replica in _marks(run):
        if (only is None or replica == only) and _is_shown(axes, at_s):
            axes.axvline(
                at_s,
                color=MARKS[mark],
                linestyle="--" if mark in ("crash", "recover") else ":",
                linewidth=1.2,
            )
            if labelled:
                axes.annotate(
                    mark,
                    (at_s, 1.0 if mark in ("crash", "recover") else 0.88),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -8),
                    textcoords="offset points",
                    fontsize=8,
                    color=MARKS[mark],
                )
    for begin_s, end_s, replica in outages(run):
        if only is None or replica == only:
            axes.axvspan(begin_s, end_s, color="#D55E00", alpha=0.08, linewidth=0)


def _is_shown(axes: Axes, at_s: float) -> bool:
    """Whether a time lies within the limits that were set; without such limits every time does."""
    begin_s, end_s = axes.get_xlim()
    return bool(axes.get_autoscalex_on()) or begin_s <= at_s <= end_s


def outages(run: Run) -> Iterator[tuple[float, float, str]]:
    """From each crash to the return of that replica, or to the end of the run."""
    down: dict[str, float] = {}
    for at_s, mark, replica in _marks(run):
        if mark == "crash":
            down.setdefault(replica, at_s)
        elif mark == "recover" and replica in down:
            yield down.pop(replica), at_s, replica
    for replica, begin_s in down.items():
        yield begin_s, float(run.manifest["virtual_s"]), replica


def _marks(run: Run) -> list[tuple[float, str, str]]:
    rows = run.timeseries[run.timeseries["metric"].isin(list(MARKS))]
    return [(at_ns / NS_PER_S, mark, replica) for at_ns, replica, mark, _ in rows.itertuples(index=False)]


def _series(run: Run, metric: str, subject: str) -> pd.DataFrame:
    series = run.timeseries
    return series[(series["metric"] == metric) & (series["subject"] == subject)]


def _edges(run: Run) -> Floats:
    """Edges of time bins: a second each, or longer ones so that there are at most 240."""
    last_s = int(run.requests["arrival_ns"].max()) / NS_PER_S if len(run.requests) else 1.0
    width_s = max(1.0, np.ceil(last_s / 240))
    return np.arange(0.0, last_s + 2 * width_s, width_s)[: int(last_s // width_s) + 2]


def _counts(requests: pd.DataFrame, edges: Floats, weights: Floats | None = None) -> Floats:
    """Requests (or their weights) a second, by arrival."""
    counts, _ = np.histogram(_seconds(requests["arrival_ns"]), bins=edges, weights=weights)
    return counts / np.diff(edges)


def _thinned(requests: pd.DataFrame) -> pd.DataFrame:
    """At most about MOST_POINTS of them, evenly, and all that needed a second try."""
    step = max(1, len(requests) // MOST_POINTS)
    shown = (np.arange(len(requests)) % step == 0) | (requests["attempts"] > 1).to_numpy()
    thinned: pd.DataFrame = requests.loc[shown]
    return thinned


def _around_first_mark(run: Run) -> pd.DataFrame:
    """The completed requests that arrived nearest to the first mark, or first of all."""
    done = run.whole.completed.sort_values("arrival_ns", kind="stable")
    marked = _marks(run)
    centre = int(np.searchsorted(_seconds(done["arrival_ns"]), marked[0][0])) if marked else 0
    begin = max(0, centre - MOST_BARS // 3)
    return done.iloc[begin : begin + MOST_BARS]


def _seconds(times_ns: "pd.Series[Any]") -> Floats:
    return times_ns.to_numpy(dtype=np.float64) / NS_PER_S


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]

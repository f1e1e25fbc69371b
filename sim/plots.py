"""Pictures of a run: each a function of a Run that returns a matplotlib Figure, readable by colour-blind eyes.

Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from engine.clock import NS_PER_S
from engine.telemetry.phases import PHASES
from sim import metrics
from sim.breakdown import by_slowness, means_s
from sim.drawing import MARKS, pack
from sim.metrics import Floats
from sim.runs import Run

# Okabe and Ito, "Color universal design" (2008); black is kept for marks and peaks
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
STYLES = ("-", "--", "-.", ":")
LOADS = ["running", "waiting", "tokens_in_flight"]
PHASE_COLOURS = ("#000000", "#999999", "#F0E442", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#0072B2")
MOST_BARS_OF_REPLICAS = 20
MOST_POINTS = 10_000
MOST_BINS = 240
MOST_BARS = 120
MOST_LABEL_ROWS = 4
LETTER_PIXELS = 6.4  # of a mark's name, on a figure that is not laid out yet: then a panel is narrower
DPI = 110


def served_by_replica(run: Run) -> Figure:
    """Who served: requests a second by arrival, a panel a replica; below them those that were not completed."""
    edges, done = _edges(run), run.whole.completed
    lost = run.requests[run.requests["outcome"] != "completed"]
    title = f"Who served the requests that arrived in {_each_bin(edges)}"
    figure, panels = _time_panels(run, title, len(run.replicas) + bool(len(lost)))
    served = [_counts(done.loc[done["replica"] == replica], edges) for replica in run.replicas]
    highest = max((float(counts.max()) for counts in served), default=0.0)
    for index, (replica, axes) in enumerate(zip(run.replicas, panels, strict=False)):
        axes.stairs(served[index], edges, fill=True, color=_colour(index))
        axes.set_ylabel(f"{replica}\nrequests/s")
        axes.set_ylim(0, 1.05 * max(highest, 1.0))  # one scale for all of them
        _draw_marks(run, axes, only=replica)
        _label_marks(run, axes, only=replica)
    if len(lost):
        panels[-1].stairs(_counts(lost, edges), edges, fill=True, color="black")
        panels[-1].set_ylabel("not completed\nrequests/s")
        panels[-1].set_ylim(0, None)
    return figure


def latency_over_time(run: Run) -> Figure:
    """E2E and TTFT of each request over its arrival; second tries stand out."""
    figure, (upper, lower) = _time_panels(run, "Latency of each request, by arrival", 2)
    done, step = _thinned(run.whole.completed)
    again = (done["attempts"] > 1).to_numpy()
    times = _seconds(done["arrival_ns"])
    first = "first try" if step == 1 else f"first try (one in {step} is shown)"
    for axes, name, values in ((upper, "E2E", metrics.e2e_s(done)), (lower, "TTFT", metrics.ttft_s(done))):
        axes.scatter(times[~again], values[~again] * 1e3, s=6, color=COLOURS[0], alpha=0.5, label=first)
        if again.any():
            axes.scatter(
                times[again], values[again] * 1e3, s=30, marker="x", color=COLOURS[5], label="second try"
            )
        axes.set_ylabel(f"{name}, ms")
        if (values > 0).any():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(_plainly))
        else:  # no logarithm of nothing
            axes.set_ylim(0, 1)
        _draw_marks(run, axes)
    _label_marks(run, upper)
    _legend(figure, lower)
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
            label = f"{name}, n={len(values)}"
            axes.step(
                ordered, share, where="post", color=COLOURS[index], linestyle=STYLES[index], label=label
            )
    if any((values > 0).any() for _, values in latencies):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_plainly))
    _legend(figure, axes)
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.9, 0.99], ["0", "p25", "p50", "p90", "p99"])
    axes.set_xlabel("latency, ms")
    return figure


def where_time_goes(run: Run) -> Figure:
    """The parts of the mean end-to-end time of completed requests: of all, and replica by replica."""
    figure, (axes,) = _panels(run, "Where the time of completed requests goes, mean by replica", 1)
    done = run.whole.completed
    if len(done):
        busiest = done["replica"].value_counts().index[:MOST_BARS_OF_REPLICAS]
        parts, by = run.parts.loc[done.index], done["replica"]
        shown = by.isin(busiest)
        means = pd.concat([means_s(parts), means_s(parts[shown], by[shown])])
        left = np.zeros(len(means))
        places = np.arange(len(means))[::-1]
        for index, name in enumerate(PHASES):
            widths = means[f"{name}_s"].to_numpy()
            if widths.any():
                axes.barh(places, widths, left=left, color=PHASE_COLOURS[index], label=name, height=0.8)
            left += widths
        axes.set_yticks(places, [str(name) for name in means.index])
    _legend(figure, axes)
    axes.set_xlabel("mean time, s")
    return figure


def what_the_slow_wait_for(run: Run) -> Figure:
    """The parts of the time of completed requests, by how slow they were: each bar sums to 100 %."""
    figure, (axes,) = _panels(run, "What completed requests spend their time on, by how slow they were", 1)
    done = run.whole.completed
    if len(done):
        buckets = by_slowness(run.parts.loc[done.index])
        totals = buckets.drop(columns="count").sum(axis=1).to_numpy()
        left, places = np.zeros(len(buckets)), np.arange(len(buckets))[::-1]
        for index, name in enumerate(PHASES):
            part = buckets[f"{name}_s"].to_numpy()
            widths = np.divide(100 * part, totals, out=np.zeros(len(part)), where=totals > 0)
            if widths.any():
                axes.barh(places, widths, left=left, color=PHASE_COLOURS[index], label=name, height=0.8)
            left += widths
        means = [f"mean {_time(total)}" for total in totals]
        counts = [f"n={count}" for count in buckets["count"]]
        rows = zip(buckets.index, counts, means, strict=True)
        axes.set_yticks(places, ["\n".join((str(name), f"{count}, {mean}")) for name, count, mean in rows])
        axes.tick_params(axis="y", labelsize=8)
    axes.set_xlim(0, 100)
    _legend(figure, axes)
    axes.set_xlabel("share of the end-to-end time, %")
    return figure


def load_over_time(run: Run) -> Figure:
    """Sequences running and waiting, and tokens in flight: a row a replica, on the same scales.

    Of a long run each step is a mean of many samples; a thin line then shows the most that any of them was.
    """
    figure, panels = _time_panels(run, "Load of each replica", len(run.replicas), columns=2, sharey=True)
    for index, replica in enumerate(run.replicas):
        sequences, tokens = panels[2 * index : 2 * index + 2]
        edges, means, peaks = _binned(_loads(run, replica))
        running, waiting, in_flight = means
        if len(edges):
            sequences.stairs(running, edges, fill=True, color=COLOURS[0], label="running")
            sequences.stairs(
                running + waiting, edges, baseline=running, fill=True, color=COLOURS[1], label="waiting"
            )
            tokens.stairs(in_flight, edges, fill=True, color=COLOURS[4], label="tokens in flight")
        if peaks is not None:
            for axes, most in zip((sequences, tokens), peaks, strict=True):
                axes.stairs(most, edges, baseline=None, color="black", linewidth=0.5, label="most at a time")
        sequences.set_ylabel(f"{replica}\nsequences")
        sequences.yaxis.set_major_locator(MaxNLocator(integer=True))
        tokens.set_ylabel("tokens in flight")
        for axes in (sequences, tokens):
            _draw_marks(run, axes, only=replica)
        _label_marks(run, sequences, only=replica)
    for axes in panels[:2]:  # the others share their scales
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    _legend(figure, *panels[:2])
    return figure


def cache_over_time(run: Run) -> Figure:
    """What the prefix cache saves, and what it holds."""
    edges, done = _edges(run), run.whole.completed
    title = f"Prefix cache, by the requests that arrived in {_each_bin(edges)}"
    figure, (upper, lower) = _time_panels(run, title, 2)
    prompt = _counts(done, edges, done["prompt_tokens"].to_numpy(dtype=float))
    cached = _counts(done, edges, metrics.cached_tokens(done).astype(float))
    ratio = np.divide(cached, prompt, out=np.full(len(prompt), np.nan), where=prompt > 0)
    upper.stairs(100 * ratio, edges, baseline=None, color=COLOURS[0], linewidth=1.5)
    upper.set_ylabel("prompt tokens\nfound, %")
    upper.set_ylim(-3, 103)  # a line at 0 or 100 is still whole
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
    lower.set_ylim(0, max(1.0, lower.get_ylim()[1]))
    for axes in (upper, lower):
        _draw_marks(run, axes)
    _label_marks(run, upper)
    _legend(figure, lower)
    return figure


def gantt(run: Run) -> Figure:
    """Each request around the first mark as a bar on the replica that had it last: waiting, prefill, decode."""
    shown = _around_first_mark(run)
    title = "Requests one by one, " + ("around the first mark" if _marks(run) else "from the first on")
    figure, panels = _time_panels(run, title, len(run.replicas), sharey=True)
    if len(shown):
        begin_s, end_s = _seconds(shown["arrival_ns"]).min(), _seconds(shown["finished_ns"]).max()
        panels[0].set_xlim(begin_s, max(end_s, begin_s + 1e-3))
    highest = 0
    for replica, axes in zip(run.replicas, panels, strict=True):
        rows = shown[shown["replica"] == replica]
        arrival, started = _seconds(rows["arrival_ns"]), _seconds(rows["started_ns"])
        first, finished = _seconds(rows["first_token_ns"]), _seconds(rows["finished_ns"])
        slots, done = pack(arrival, finished), (rows["outcome"] == "completed").to_numpy()
        begun = np.fmin(started, first)  # the first token may come from a replica that was lost afterwards
        spans = (
            (done, arrival, begun, "#BBBBBB", "waiting"),
            (done, begun, first, COLOURS[1], "prefill"),
            (done, first, finished, COLOURS[0], "decode"),
            (~done, arrival, finished, COLOURS[5], "not completed"),
        )
        for which, begin, end, colour, label in spans:
            if which.any():
                lengths = (end - begin)[which]
                axes.barh(slots[which], lengths, left=begin[which], height=0.8, color=colour, label=label)
        highest = max(highest, int(slots.max(initial=0)))
        axes.set_ylabel(f"{replica}\nslot")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _draw_marks(run, axes, only=replica)
        _label_marks(run, axes, only=replica)
    panels[0].set_ylim(-0.6, highest + 0.6)  # the others share it
    _legend(figure, *panels)
    return figure


plots: dict[str, Callable[[Run], Figure]] = {
    "served_by_replica": served_by_replica,
    "latency_over_time": latency_over_time,
    "latency_cdf": latency_cdf,
    "where_time_goes": where_time_goes,
    "what_the_slow_wait_for": what_the_slow_wait_for,
    "load_over_time": load_over_time,
    "cache_over_time": cache_over_time,
    "gantt": gantt,
}
CAPTIONS = {
    "served_by_replica": "Who served the requests by the time of their arrival; the outage is shaded.",
    "latency_over_time": "Every request by its arrival; a cross is a request that a second replica had to finish.",
    "latency_cdf": "The share of requests that were at least so fast.",
    "where_time_goes": "The parts of the mean time; those of a request sum to its time exactly.",
    "what_the_slow_wait_for": "The parts of the time by how slow requests were; the slowest percent stands lowest.",
    "load_over_time": "Sequences and tokens on each replica; in a long run their means, and a line for the most.",
    "cache_over_time": "The part of the prompts that needed no prefill, and the memory that this takes.",
    "gantt": "Single requests on the replica that had them last.",
}


def save_all(run: Run, folder: Path) -> list[Path]:
    """Every picture as a PNG in `folder`, which is made. The same run gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_save(plot(run), folder / f"{name}.png") for name, plot in plots.items()]


def _save(figure: Figure, path: Path) -> Path:
    """What `savefig` would write, which lays everything out by drawing it once before it draws."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    with path.open("wb") as file:
        canvas.print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return path


def _time(seconds: float) -> str:
    """A duration in the unit in which people would say it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _panels(
    run: Run, title: str, rows: int, *, columns: int = 1, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A titled figure with its panels, row by row; all share one x axis, those of a column a y axis on demand."""
    figure = Figure(figsize=(9, 1.2 + 1.9 * max(rows, 2)), layout="constrained")
    FigureCanvasAgg(figure)
    manifest = run.manifest
    engine = f"{manifest['strategy']} on {manifest['executor']}"
    requests = f"n={len(run.requests)}" if len(run.requests) else "no request has ended"
    figure.suptitle(f"{title}\n{run.name}: {requests}, seed {manifest['seed']}, {engine}", fontsize=11)
    grid = figure.subplots(rows, columns, sharex=True, sharey="col" if sharey else "none", squeeze=False)
    panels = list(grid.ravel())
    for axes in panels:
        axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _time_panels(
    run: Run, title: str, rows: int, *, columns: int = 1, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Panels over the whole run."""
    figure, panels = _panels(run, title, rows, columns=columns, sharey=sharey)
    panels[0].set_xlim(0, run.manifest["virtual_s"] or 1.0)
    for axes in panels[-columns:]:
        axes.set_xlabel("virtual time, s")
    return figure, panels


def _draw_marks(run: Run, axes: Axes, *, only: str | None = None) -> None:
    """Vertical lines where a replica crashed, fell ill in the router's eyes, came back, was well; outages shaded.

    `only` is the replica that a panel is about; without it, the marks of all are drawn.
    """
    times_s: dict[str, list[float]] = {mark: [] for mark in MARKS}
    for at_s, mark, replica in _marks(run):
        if only in (None, replica):
            times_s[mark].append(at_s)
    for mark, colour in MARKS.items():
        lines = LineCollection(
            [[(at_s, 0.0), (at_s, 1.0)] for at_s in times_s[mark]],
            colors=colour,
            linestyles="--" if mark in ("crash", "recover") else ":",
            linewidths=1.2,
            transform=axes.get_xaxis_transform(),
        )
        axes.add_collection(lines, autolim=False)
    for begin_s, end_s, replica in outages(run):
        if only in (None, replica):
            limits = axes.get_xlim()
            axes.axvspan(begin_s, end_s, color="#D55E00", alpha=0.1, linewidth=0, zorder=0)
            axes.set_xlim(limits)


def _label_marks(run: Run, axes: Axes, *, only: str | None = None) -> None:
    """Names of the marks in a few lines above a panel whose limits are set, none on another.

    Where marks crowd, those without room go without a name; colour and style of their lines still tell.
    """
    begin_s, end_s = axes.get_xlim()
    s_per_letter = LETTER_PIXELS * (end_s - begin_s) / axes.bbox.width
    taken_until_s = [begin_s] * MOST_LABEL_ROWS
    for at_s, mark, replica in _marks(run):
        if only not in (None, replica) or not begin_s <= at_s <= end_s:
            continue
        text = mark if only else f"{replica}: {mark}"
        width_s = (len(text) + 1) * s_per_letter
        left_s = max(begin_s, min(at_s, end_s - width_s))
        row = next((row for row, until_s in enumerate(taken_until_s) if until_s <= left_s), None)
        if row is not None:
            taken_until_s[row] = left_s + width_s
            axes.annotate(
                text,
                (left_s, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2 + 10 * row),
                textcoords="offset points",
                fontsize=8,
                color=MARKS[mark],
            )


def _legend(figure: Figure, *panels: Axes) -> None:
    """One legend below all panels, where it hides nothing."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        figure.legend(named.values(), named, loc="outside lower right", ncols=5, fontsize=8, frameon=False)


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


def _loads(run: Run, replica: str) -> pd.DataFrame:
    """Samples of a replica's LOADS, one column each, over at_ns."""
    series = run.timeseries
    rows = series[(series["subject"] == replica) & series["metric"].isin(LOADS)]
    samples = rows.pivot_table(index="at_ns", columns="metric", values="value", aggfunc="last")
    return samples.reindex(columns=LOADS).fillna(0.0)


def _binned(loads: pd.DataFrame) -> tuple[Floats, Floats, Floats | None]:
    """Edges, the mean of each load between them, and peaks: of all sequences, and of the tokens in flight.

    There are at most MOST_BINS bins. With a sample a bin there are no peaks.
    """
    values = loads.to_numpy().T
    times = _seconds(loads.index.to_series())
    if not len(times):
        return times, values, None
    size = -(-len(times) // MOST_BINS)
    starts = np.arange(0, len(times), size)
    edges = np.append(times[starts], times[-1])
    means = np.add.reduceat(values, starts, axis=1) / np.diff(np.append(starts, len(times)))
    if size == 1:
        return edges, means, None
    running, waiting, tokens = values
    return edges, means, np.maximum.reduceat(np.array([running + waiting, tokens]), starts, axis=1)


def _each_bin(edges: Floats) -> str:
    width_s = edges[1] - edges[0]
    return "each second" if width_s == 1 else f"each {width_s:g} s"


def _edges(run: Run) -> Floats:
    """Edges of time bins: a second each, or longer ones so that there are about MOST_BINS at most."""
    last_s = int(run.requests["arrival_ns"].max()) / NS_PER_S if len(run.requests) else 1.0
    width_s = max(1.0, np.ceil(last_s / MOST_BINS))
    return np.arange(0.0, last_s + 2 * width_s, width_s)[: int(last_s // width_s) + 2]


def _counts(requests: pd.DataFrame, edges: Floats, weights: Floats | None = None) -> Floats:
    """Requests (or their weights) a second, by arrival."""
    counts, _ = np.histogram(_seconds(requests["arrival_ns"]), bins=edges, weights=weights)
    return counts / np.diff(edges)


def _thinned(requests: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """At most MOST_POINTS of them, one in so many, and all that needed a second try."""
    step = max(1, -(-len(requests) // MOST_POINTS))
    shown = (np.arange(len(requests)) % step == 0) | (requests["attempts"] > 1).to_numpy()
    return requests.loc[shown], step


def _around_first_mark(run: Run) -> pd.DataFrame:
    """The requests that a replica had and that arrived nearest to the first mark, or first of all."""
    served = run.requests[run.requests["replica"].notna()].sort_values("arrival_ns", kind="stable")
    marked = _marks(run)
    centre = int(np.searchsorted(_seconds(served["arrival_ns"]), marked[0][0])) if marked else 0
    begin = max(0, centre - MOST_BARS // 3)
    return served.iloc[begin : begin + MOST_BARS]


def _plainly(value: float, _position: int | None) -> str:
    return f"{value:g}"


def _seconds(times_ns: "pd.Series[Any]") -> Floats:
    return times_ns.to_numpy(dtype=np.float64) / NS_PER_S


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]

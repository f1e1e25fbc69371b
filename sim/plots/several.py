"""Pictures of several runs: by offered rate, strategy against strategy.

Runs may be given as a list of them, as a pattern of their folders, or as the table that `sim.load` gives. Where
several seeds were played the intervals are those of Student's t over them; where only one was, a percentile has that
of order statistics, and other figures have none.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from sim import metrics
from sim.certainty import interval_of
from sim.copies import without_copies
from sim.experiments import is_better
from sim.intervals import Interval, interval
from sim.metrics import Floats
from sim.plots.frame import Frame, Look, colour, logarithmic_if_possible, of_runs, style
from sim.plots.generic import Point, heat_map, pareto
from sim.runs import Run, matching, open_run

Runs = Iterable[Run] | pd.DataFrame | Path | str

PERCENTILES = (50, 90, 99)
LEVELS = (0.99, 0.95, 0.90)
MARKERS = "osD^vP*X"
LEAST_FOR_KNEE = 4
INTERVALS = "bars: 95 % intervals"


class Mean(NamedTuple):
    """A figure at one rate: its mean over the seeds, and where it lies."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> Interval:
        """The same to both sides."""
        half = (self.high - self.low) / 2
        return Interval(self.value, half or None)


def runs_of(given: Runs) -> list[Run]:
    """Raises BadSettings where a pattern matches none."""
    if isinstance(given, pd.DataFrame):
        return [open_run(path) for path in given["path"].unique()]
    if isinstance(given, Path | str):
        found = [open_run(folder) for folder in matching(given)]
        if not found:
            raise BadSettings(f"no finished run matches {str(given)!r}")
        return found
    return list(given)


def offered_rate(run: Run) -> float:
    """Requests a second: as set, or as they came where nobody sets a rate."""
    rate = run.config.get("workload", {}).get("rate")
    if isinstance(rate, int | float) and not isinstance(rate, bool):
        return float(rate)
    arrivals = run.requests["arrival_ns"].to_numpy(dtype=np.float64)
    span_s = float(np.ptp(arrivals)) / NS_PER_S if len(arrivals) > 1 else 0.0
    return float(f"{(len(arrivals) - 1) / span_s:.3g}") if span_s else 0.0


def by_strategy(runs: Sequence[Run]) -> dict[str, dict[float, list[Run]]]:
    """The runs of each strategy at each rate, from the lowest on."""
    found: dict[str, dict[float, list[Run]]] = {}
    for run in sorted(runs, key=offered_rate):
        rates = found.setdefault(str(run.manifest["strategy"]), {})
        rates.setdefault(offered_rate(run), []).append(run)
    return dict(sorted(found.items()))


def mean_of(runs: Sequence[Run], figure: str | Callable[[Run], float | None]) -> Mean | None:
    """A figure over runs that differ in their seeds; None where one of them does not have it."""
    runs = without_copies(runs, [run.manifest["digest"] for run in runs])
    values = [run.summary.get(figure) if isinstance(figure, str) else figure(run) for run in runs]
    known = [float(value) for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if len(known) > 1:
        found = interval(known)
        return Mean(found.mean, found.low, found.high)
    ends = interval_of(runs[0], figure) if isinstance(figure, str) else None
    low, high = ends[0] if ends is not None and ends[0] is not None else (known[0], known[0])
    return Mean(known[0], low, high)


def percentiles_by_rate(given: Runs) -> Figure:
    """TTFT and E2E at p50, p90 and p99 against the offered rate, and the knee of the p99: runs of one strategy.

    Raises BadSettings for runs of several strategies.
    """
    runs = runs_of(given)
    groups = by_strategy(runs)
    if len(groups) > 1:
        raise BadSettings(f"runs are of the strategies {', '.join(groups)}, but must be of one of them")
    rates = next(iter(groups.values()), {})
    frame = Frame("Latency against offered rate", of_runs(runs, INTERVALS), 2, left=1.05)
    frame.label_x("offered, requests/s")
    for axes, name in zip(frame.panels, ("ttft", "e2e"), strict=True):
        drawn = [
            _draw_line(axes, rates, f"p{q}_{name}_s", index, label=f"p{q}", scale=1e3)
            for index, q in enumerate(PERCENTILES)
        ]
        axes.set_ylabel(f"{name.upper()}, ms")
        logarithmic_if_possible(axes.yaxis, np.concatenate([y for _, y in drawn]))
        at = knee(*drawn[-1])
        if at is not None:
            line: Look = {"color": "black", "linewidth": 1, "linestyle": ":"}
            axes.axvline(at, label="knee of the p99", **line)
            axes.annotate(f"{at:g}/s", (at, 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="center")
        if not any(len(x) for x, _ in drawn):
            frame.say(axes, "there is no run to show")
    return frame.done()


def throughput_by_latency(given: Runs, latency: str = "p99_e2e_s") -> Figure:
    """What is completed a second and how long it takes: a line a strategy, a point an offered rate."""
    runs = runs_of(given)
    frame = Frame(f"Throughput against {_said(latency)}", of_runs(runs, _intervals(runs)), height=4.0)
    (axes,) = frame.panels
    frame.label_x("completed, requests/s")
    axes.set_ylabel(f"{_said(latency)}, ms")
    heights = [np.zeros(0)]
    for index, (strategy, rates) in enumerate(by_strategy(runs).items()):
        pairs = [
            (mean_of(each, "request_throughput_per_s"), mean_of(each, latency)) for each in rates.values()
        ]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        _draw(axes, [x for x, _ in known], [y for _, y in known], index, strategy, scale=1e3)
        heights.append(np.array([1e3 * y.value for _, y in known]))
    logarithmic_if_possible(axes.yaxis, np.concatenate(heights))
    if not sum(map(len, heights)):
        frame.say(axes, "no run has both figures")
    return frame.done()


def goodput_by_rate(given: Runs, ttft_slo_s: float, tpot_slo_s: float) -> Figure:
    """The share of all offered requests that met both objectives, by rate: a line a strategy.

    The legend has the largest rate that was tried at which 99, 95 and 90 % met them, as they did at all lower ones.
    """
    runs = runs_of(given)
    title = f"Requests with TTFT <= {ttft_slo_s:g} s and TPOT <= {tpot_slo_s:g} s"
    frame = Frame(title, of_runs(runs, _intervals(runs)), height=4.0)
    (axes,) = frame.panels
    frame.label_x("offered, requests/s")
    axes.set_ylabel("met both, % of all offered")
    for index, (strategy, rates) in enumerate(by_strategy(runs).items()):
        shares = {rate: mean_of(each, attained(ttft_slo_s, tpot_slo_s)) for rate, each in rates.items()}
        known = {rate: share for rate, share in shares.items() if share is not None}
        rate_at = largest_rates({rate: share.value for rate, share in known.items()})
        told = ", ".join(
            f"{'none' if rate is None else f'{rate:g}/s'} at {100 * level:g} %"
            for level, rate in rate_at.items()
        )
        at = [Mean(rate, rate, rate) for rate in known]
        _draw(axes, at, list(known.values()), index, f"{strategy}: {told}", scale=100.0)
    for level in LEVELS:
        axes.axhline(100 * level, color="#555555", linewidth=0.8, linestyle=":")
    axes.set_ylim(-2, 104)
    if not runs:
        frame.say(axes, "there is no run to show")
    return frame.done()


def attained(ttft_slo_s: float, tpot_slo_s: float) -> Callable[[Run], float | None]:
    """The share of a run's requests that met both objectives."""
    return lambda run: metrics.slo_attainment(run.requests, ttft_slo_s, tpot_slo_s)


def largest_rates(shares: dict[float, float], levels: Sequence[float] = LEVELS) -> dict[float, float | None]:
    """For each level the largest rate at which so many met them, as at all lower ones; None if at none."""
    found: dict[float, float | None] = {}
    for level in levels:
        found[level] = None
        for rate in sorted(shares):
            if shares[rate] < level:
                break
            found[level] = rate
    return found


def knee(rates: Floats, values: Floats) -> float | None:
    """The rate from which on a rising curve bends upwards most; None where it does not, or where points are few.

    The point furthest below the straight line from the first point to the last (Satopaa et al., "Finding a kneedle in
    a haystack", 2011), both axes from 0 to 1.
    """
    if len(rates) < LEAST_FOR_KNEE or values[-1] <= values[0]:
        return None
    x = (rates - rates[0]) / (rates[-1] - rates[0])
    y = (values - values[0]) / (values[-1] - values[0])
    below = x - y
    best = int(np.argmax(below))
    return float(rates[best]) if below[best] > 1 / len(rates) else None


def front_of(given: Runs, x: str = "p99_ttft_s", y: str = "output_throughput_tokens_per_s") -> Figure:
    """Strategies at their rates by two figures of the summary, and which of them no other one beats in both."""
    runs = runs_of(given)
    points = []
    for strategy, rates in by_strategy(runs).items():
        for rate, each in rates.items():
            one, other = mean_of(each, x), mean_of(each, y)
            if one is not None and other is not None:
                name = strategy if len(rates) == 1 else f"{strategy} at {rate:g}/s"
                points.append(Point(name, one.interval, other.interval))
    less = [is_better(figure, -1.0) for figure in (x, y)]
    return pareto(points, x=x, y=y, less_x=less[0], less_y=less[1], rests_on=of_runs(runs, _intervals(runs)))


def strategy_heat_map(given: Runs, figure: str = "p99_ttft_s") -> Figure:
    """A figure of the summary by strategy (down) and offered rate (across), the mean over seeds."""
    runs = runs_of(given)
    groups = by_strategy(runs)
    rates = sorted({rate for each in groups.values() for rate in each})
    cells = [
        [mean_of(each[rate], figure) if rate in each else None for rate in rates] for each in groups.values()
    ]
    table = pd.DataFrame(
        [[np.nan if cell is None else cell.value for cell in row] for row in cells],
        index=pd.Index(list(groups), name="strategy"),
        columns=pd.Index([f"{rate:g}" for rate in rates], name="offered, requests/s"),
        dtype=np.float64,
    )
    less = is_better(figure, -1.0)
    return heat_map(
        table, title="Strategies at offered rates", unit=figure, less=less, rests_on=of_runs(runs)
    )


def _draw_line(
    axes: Axes, rates: dict[float, list[Run]], figure: str, index: int, *, label: str, scale: float
) -> tuple[Floats, Floats]:
    """A figure against the rate; what was drawn."""
    found = {rate: mean_of(each, figure) for rate, each in rates.items()}
    known = {rate: one for rate, one in found.items() if one is not None}
    _draw(axes, [Mean(rate, rate, rate) for rate in known], list(known.values()), index, label, scale=scale)
    return np.array(list(known)), np.array([scale * one.value for one in known.values()])


def _draw(axes: Axes, x: Sequence[Mean], y: Sequence[Mean], index: int, label: str, *, scale: float) -> None:
    """A line with bars where there are intervals; `scale` is that of y."""
    if not x:
        return
    spans = [np.array([[one.value - one.low, one.high - one.value] for one in side]).T for side in (x, y)]
    look: Look = {"color": colour(index), "linestyle": style(index), "marker": MARKERS[index % len(MARKERS)]}
    axes.errorbar(
        [one.value for one in x],
        [scale * one.value for one in y],
        xerr=spans[0] if spans[0].any() else None,
        yerr=scale * spans[1] if spans[1].any() else None,
        markersize=5,
        capsize=2,
        elinewidth=0.9,
        label=label,
        **look,
    )


def _intervals(runs: Sequence[Run]) -> str:
    """What bars are: over seeds, where there are several."""
    return (
        INTERVALS if len({run.manifest["seed"] for run in runs}) > 1 else "one seed: bars of percentiles only"
    )


def _said(figure: str) -> str:
    """`p99_e2e_s` as people say it."""
    kind, _, name = figure.removesuffix("_s").partition("_")
    return f"{name.upper()} {kind}"

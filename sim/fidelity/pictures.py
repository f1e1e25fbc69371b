"""Pictures of a comparison: simulated against real, both distributions, and errors by load."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sim.fidelity.bench import CaseResult
from sim.fidelity.compare import LATENCIES
from sim.plots import COLOURS, DPI

MARGIN = 0.05
MOST_POINTS = 4_000
REAL, SIMULATED = COLOURS[0], COLOURS[1]


def save_all(results: Sequence[CaseResult], folder: Path) -> list[str]:
    """Write every picture; the names of the files."""
    made = {}
    for result in results:
        if not result.points.empty:
            made[f"{result.name}_pairs.png"] = pairs(result)
            made[f"{result.name}_distributions.png"] = distributions(result)
    if results:
        made["errors.png"] = errors(results)
    for name, figure in made.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(made)


def new_figure(width: float, height: float) -> Figure:
    """A figure that touches nothing global and needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def first_runs(result: CaseResult, metric: str) -> pd.DataFrame:
    """A latency of each request in the first run of each side, in ms."""
    rows = result.points[result.points["run"] == 0]
    wide = rows.pivot_table(index="request_id", columns="side", values=metric)
    return wide.dropna() * 1_000


def pairs(result: CaseResult) -> Figure:
    """Request by request: simulated against real, with y = x and 5 % to both sides."""
    figure = new_figure(12, 4.2)
    figure.suptitle(f"{result.title}: each request in both worlds")
    for axes, metric in zip(figure.subplots(1, len(LATENCIES)), LATENCIES, strict=True):
        rows = first_runs(result, metric).iloc[:MOST_POINTS]
        if rows.empty:
            continue
        axes.scatter(rows["real"], rows["simulated"], s=6, alpha=0.4, color=REAL, linewidths=0)
        ends = np.array([rows.to_numpy().min(), rows.to_numpy().max()])
        axes.plot(ends, ends, color="black", linewidth=1)
        axes.fill_between(
            ends, ends * (1 - MARGIN), ends * (1 + MARGIN), color="grey", alpha=0.25, linewidth=0
        )
        axes.set(xscale="log", yscale="log", xlabel=f"real {metric}, ms", ylabel=f"simulated {metric}, ms")
    return figure


def distributions(result: CaseResult) -> Figure:
    """The distribution of each latency: a line for every real run, and one for every simulated one."""
    figure = new_figure(12, 4.2)
    figure.suptitle(f"{result.title}: share of requests that took at most so long")
    for axes, metric in zip(figure.subplots(1, len(LATENCIES)), LATENCIES, strict=True):
        for (side, number), rows in result.points.groupby(["side", "run"]):
            values = np.sort(rows[metric].dropna().to_numpy()) * 1_000
            colour = REAL if side == "real" else SIMULATED
            label = str(side) if number == 0 else None
            heights = np.arange(1, len(values) + 1) / max(1, len(values))
            axes.plot(values, heights, color=colour, linewidth=0.9, label=label)
        axes.set(xscale="log", xlabel=f"{metric}, ms", ylim=(0, 1))
        axes.legend(frameon=False)
    return figure


def errors(results: Sequence[CaseResult]) -> Figure:
    """Signed errors of means and p99 by case, over twice the noise floor."""
    figure = new_figure(12, 7)
    panels = figure.subplots(2, 1, sharex=True)
    names = [result.name for result in results]
    width = 0.8 / len(LATENCIES)
    for axes, statistic in zip(panels, ("mean", "p99"), strict=True):
        for position, metric in enumerate(LATENCIES):
            found = [
                next(cell for cell in result.cells if (cell.metric, cell.statistic) == (metric, statistic))
                for result in results
            ]
            places = np.arange(len(names)) + position * width
            heights = [100 * (cell.error or 0.0) for cell in found]
            floors = [200 * (cell.floor or 0.0) for cell in found]
            axes.bar(places, heights, width, label=metric, color=COLOURS[position], yerr=floors, capsize=2)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"error of the {statistic}, %")
    panels[0].set_title("Simulated over real, less 1; the lines are two noise floors to both sides")
    panels[0].legend(frameon=False, ncols=len(LATENCIES))
    panels[1].set_xticks(np.arange(len(names)) + width, names)
    return figure

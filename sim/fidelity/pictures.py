"""Pictures of a comparison: simulated against real, both distributions, and errors by load."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sim.fidelity.bench import CaseResult
from sim.fidelity.compare import LATENCIES
from sim.plots import COLOURS, DPI
from sim.plots.frame import logarithmic_if_possible
from sim.plots.generic import draw_agreement, draw_residuals

CAPTIONS = {
    "errors.png": "Signed errors of means and p99 by case: simulated over real, less 1; lines are two spreads, "
    "which is how far the errors of two rounds lie apart.",
    "by_load.png": "Signed errors of the Poisson cases by load, with two spreads to both sides.",
    "floors.png": "Every judged cell: its error against its noise floor. Below the line it is within two floors.",
    "pairs.png": "Each request in both worlds: simulated against real, y = x, and 5 % to both sides.",
    "distributions.png": "Share of requests that took at most so long: a line for each run.",
    "residuals.png": "Turns of the machine: what they took over what the simulation takes for them, calibration and "
    "compared runs (to which nothing is fitted). Dots are turns, lines medians of a hundred of about the same size.",
}
"""What pictures show, by their kind."""

MOST_POINTS = 4_000
BY_LOAD = "poisson"
REAL, SIMULATED = COLOURS[0], COLOURS[1]


def save_all(results: Sequence[CaseResult], folder: Path) -> list[str]:
    """Write every picture into `folder`; the names of the files."""
    made = {}
    if results:
        made["errors.png"] = errors(results)
        made["floors.png"] = floors(results)
    if steps := [result for result in results if result.name.startswith(BY_LOAD)]:
        made["by_load.png"] = by_load(steps)
    for result in results:
        if not result.points.empty:
            made[f"{result.name}_pairs.png"] = pairs(result)
            made[f"{result.name}_distributions.png"] = distributions(result)
        if not result.residuals.empty:
            made[f"{result.name}_residuals.png"] = residuals(result)
    folder.mkdir(exist_ok=True)
    for name, figure in made.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(made)


def kind_of(name: str) -> str:
    """What sort of picture a file has."""
    return name if name in CAPTIONS else name.rpartition("_")[2]


def new_figure(width: float, height: float) -> Figure:
    """A figure that touches nothing global and needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def explain(axes: Axes) -> None:
    """Say which line is which, where there are any."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


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
        draw_agreement(axes, rows["real"].to_numpy(), rows["simulated"].to_numpy(), name=metric, unit="ms")
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
        axes.set(xlabel=f"{metric}, ms", ylim=(0, 1))
        logarithmic_if_possible(axes.xaxis, result.points[metric].dropna().to_numpy() * 1_000)
        explain(axes)
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
            spans = [200 * (cell.spread or 0.0) for cell in found]
            axes.bar(places, heights, width, label=metric, color=COLOURS[position], yerr=spans, capsize=2)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"error of the {statistic}, %")
    panels[0].set_title("Simulated over real, less 1; the lines are two spreads to both sides")
    panels[0].legend(frameon=False, ncols=len(LATENCIES))
    panels[1].set_xticks(np.arange(len(names)) + width, names)
    return figure


def by_load(results: Sequence[CaseResult]) -> Figure:
    """Signed errors against load: means to the left, p99 to the right."""
    figure = new_figure(12, 4.2)
    for axes, statistic in zip(figure.subplots(1, 2, sharey=True), ("mean", "p99"), strict=True):
        for position, metric in enumerate(LATENCIES):
            found = [
                (100 * result.load + position - 1, 100 * cell.error, 200 * (cell.spread or 0.0))
                for result in results
                for cell in result.cells
                if (cell.metric, cell.statistic) == (metric, statistic) and cell.error is not None
            ]
            if found:
                loads, heights, spans = zip(*found, strict=True)
                axes.errorbar(
                    loads, heights, spans, fmt="o-", capsize=2, label=metric, color=COLOURS[position]
                )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="load, % of the measured capacity", ylabel=f"error of the {statistic}, %")
        explain(axes)
    return figure


def floors(results: Sequence[CaseResult]) -> Figure:
    """Errors of judged cells against their noise floors, and the line up to which one is within two floors."""
    figure = new_figure(7, 5)
    axes = figure.subplots()
    found = [
        (100 * cell.floor, 100 * abs(cell.error), cell.statistic == "p99")
        for result in results
        for cell in result.cells
        if cell.mark is not None and cell.error is not None and cell.floor is not None
    ]
    for position, (is_tail, label) in enumerate(((False, "means and throughput"), (True, "p99"))):
        dots = [(floor, error) for floor, error, tail in found if tail is is_tail]
        if dots:
            places, heights = zip(*dots, strict=True)
            axes.scatter(places, heights, s=22, color=COLOURS[position], label=label)
    most = max([1.0, *(max(floor, error) for floor, error, _ in found)])
    axes.plot([0, most], [0, 2 * most], color="black", linewidth=0.8, label="two floors")
    axes.set(xlabel="noise floor, %", ylabel="|error|, %", xlim=(0, 1.05 * most), ylim=(0, 1.05 * most))
    explain(axes)
    return figure


def residuals(result: CaseResult) -> Figure:
    """Turns against what is foreseen of them, for the runs that were fitted to and for those that were not."""
    figure = new_figure(12, 4.2)
    figure.suptitle(f"{result.title}: turns of the machine, real over simulated")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, source in zip(panels, ("calibration", "compared"), strict=True):
        for position, kind in enumerate(("decode", "prefill")):
            rows = result.residuals
            rows = rows[(rows["source"] == source) & (rows["kind"] == kind)]
            foreseen_ms, took_ms = (rows[name].to_numpy() / 1e6 for name in ("foreseen_ns", "took_ns"))
            draw_residuals(axes, foreseen_ms, took_ms, name=kind, index=position)
        axes.set(xlabel="foreseen, ms", ylabel="took / foreseen", ylim=(0, 3), title=source)
        foreseen_ns = result.residuals.loc[result.residuals["source"] == source, "foreseen_ns"]
        logarithmic_if_possible(axes.xaxis, foreseen_ns.to_numpy() / 1e6)
        explain(axes)
    return figure

"""Pictures of many configurations: which of them nothing beats in two figures, and what two settings do to one.

Made as those of `sim.plots` are: without pyplot, readable by colour-blind eyes, titled with what they rest on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sim.experiments import is_better
from sim.intervals import Interval, interval

BLUE, GREY = "#0072B2", "#999999"  # Okabe and Ito, as in sim.plots
DPI = 110
MOST_NAMED = 12
WIDE = 60  # letters of a name that has a row of the legend to itself
MOST_CELLS = 400  # of a heat map that has numbers in it


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration in a picture: its name, and a mean with its interval on each axis."""

    name: str
    x: Interval
    y: Interval


def front(points: Sequence[Point], x: str, y: str) -> list[Point]:
    """Those that no other one equals in one figure and beats in the other, in the order of the first figure."""
    signs = [1.0 if is_better(figure, -1.0) else -1.0 for figure in (x, y)]

    def key(point: Point) -> tuple[float, float]:
        return signs[0] * point.x.mean, signs[1] * point.y.mean

    best: list[Point] = []
    for point in sorted(points, key=key):
        if not best or key(point)[1] < key(best[-1])[1] or key(point) == key(best[-1]):
            best.append(point)
    return best


def pareto(points: Sequence[Point], x: str, y: str, rests_on: str) -> Figure:
    """All configurations by two figures; those of the front have a name and are joined."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = front(points, x, y)
    for point in points:
        is_front = point in best
        axes.errorbar(
            point.x.mean,
            point.y.mean,
            xerr=point.x.half_width or 0.0,
            yerr=point.y.half_width or 0.0,
            fmt="o" if is_front else "s",
            color=BLUE if is_front else GREY,
            markersize=7 if is_front else 5,
            capsize=2,
            elinewidth=0.8,
            zorder=3 if is_front else 2,
        )
    axes.step(
        [p.x.mean for p in best], [p.y.mean for p in best], where="post", color=BLUE, linewidth=1, zorder=1
    )
    _number_them(figure, axes, best)
    axes.margins(0.15)
    axes.set_xlabel(f"{x} ({_direction(x)})")
    axes.set_ylabel(f"{y} ({_direction(y)})")
    noun = "configuration" + "s" * (len(points) != 1)
    axes.set_title(
        f"{len(points)} {noun}: {len(best)} (blue) that no other beats in both figures\n{rests_on}",
        fontsize=10,
    )
    return figure


def _number_them(figure: Figure, axes: Axes, best: Sequence[Point]) -> None:
    """A number beside each point of the front, and below the picture whose it is: names are too long there."""
    there: dict[tuple[float, float], list[str]] = {}
    for number, point in enumerate(best[:MOST_NAMED], start=1):
        there.setdefault((point.x.mean, point.y.mean), []).append(str(number))
        axes.plot([], [], " ", label=f"{number}  {point.name}")
    for place, numbers in there.items():
        axes.annotate(
            ", ".join(numbers), place, xytext=(6, 6), textcoords="offset points", color=BLUE, weight="bold"
        )
    if there:
        columns = 1 if max(len(point.name) for point in best) > WIDE else 2
        figure.legend(loc="outside lower left", ncols=columns, fontsize=8, frameon=False, handlelength=0)


def heat_map(
    index: pd.DataFrame,
    settings: tuple[str, str],
    values: Mapping[str, Sequence[str]],
    figure: str,
    rests_on: str,
) -> Figure:
    """The mean of a figure for each pair of values of two settings, over the seeds and all else that was swept."""
    down, across = settings
    whole = index[index["error"] == ""]
    cells = np.full((len(values[down]), len(values[across])), np.nan)
    texts: dict[tuple[int, int], str] = {}
    for row, one in enumerate(values[down]):
        for column, other in enumerate(values[across]):
            runs = whole[(whole[down] == one) & (whole[across] == other)]
            texts[row, column] = "none"
            if len(runs) and not runs[figure].isna().any():
                found = interval(runs[figure].astype(float).groupby(runs["seed"]).mean().tolist())
                cells[row, column] = found.mean
                give = "" if found.half_width is None else f"\n+- {found.half_width:.2g}"
                texts[row, column] = f"{found.mean:.3g}{give}"
    picture = Figure(
        figsize=(max(6.5, 3.5 + 1.1 * cells.shape[1]), 2.2 + 0.6 * cells.shape[0]), layout="constrained"
    )
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(cells), cmap="cividis", aspect="auto")
    axes.set_xticks(range(cells.shape[1]), list(values[across]), rotation=30, ha="right")
    axes.set_yticks(range(cells.shape[0]), list(values[down]))
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2 if np.isfinite(cells).any() else 0.0
    if cells.size <= MOST_CELLS:
        for (row, column), text in texts.items():
            is_dark = cells[row, column] <= middle  # where there is none, the ground is white
            colour = "white" if is_dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    picture.colorbar(image, label=f"{figure} ({_direction(figure)})")
    axes.set_title(f"{figure} by {down} and {across}\n{rests_on}", fontsize=10)
    return picture


def save(figure: Figure, path: Path) -> None:
    """As PNG, aside and renamed: a picture that has its name is whole."""
    aside = path.with_name(f"{path.name}.part")
    try:
        figure.savefig(aside, dpi=DPI, format="png")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def rests_on(seeds: Sequence[int], runs: int) -> str:
    """What a picture of a sweep rests on, for its title."""
    named = _told(seeds)
    bars = "bars and +-: 95 % t-intervals of means over seeds" if len(seeds) > 1 else "one seed: no intervals"
    return f"n = {runs} runs, {named}; {bars}"


def _told(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    is_row = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    if is_row:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"{len(seeds)} seeds"


def _direction(figure: str) -> str:
    return "less is better" if is_better(figure, -1.0) else "more is better"

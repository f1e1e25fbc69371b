"""Pictures of plain tables: Pareto front, heat map, forest of differences, agreement, residuals."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sim.metrics import Floats
from sim.plots.frame import (
    COLOURS,
    GREY,
    Frame,
    Look,
    colour,
    logarithmic,
    logarithmic_if_possible,
    room_for,
    style,
)

MARGIN = 0.05
"""To both sides of y = x."""
VERDICTS = {"better": "#009E73", "worse": "#D55E00"}
MOST_NAMED = 24
MOST_CELLS_WITH_FIGURES = 300
MARKERS = "osD^vP*X"
MOST_LETTERS_OF_HEADS = 100  # side by side
TOGETHER = 100  # points whose median is drawn


class Point(NamedTuple):
    """One way to serve: what it costs and what it gives, with half-widths where there are intervals."""

    name: str
    x: float
    y: float
    x_half: float | None = None
    y_half: float | None = None


class ForestRow(NamedTuple):
    """A difference with its interval; the verdict colours it (better, worse, or anything else)."""

    name: str
    mean: float
    low: float
    high: float
    verdict: str = ""


def on_front(points: Sequence[Point], *, less_x: bool = True, less_y: bool = True) -> list[bool]:
    """Which points no other one beats: at least as good in both, and better in one."""
    x = np.array([point.x for point in points], dtype=np.float64) * (1 if less_x else -1)
    y = np.array([point.y for point in points], dtype=np.float64) * (1 if less_y else -1)
    return [not (((x <= a) & (y <= b)) & ((x < a) | (y < b))).any() for a, b in zip(x, y, strict=True)]


def pareto(
    points: Sequence[Point],
    *,
    x: str,
    y: str,
    less_x: bool = True,
    less_y: bool = True,
    title: str = "What no other choice beats",
    rests_on: str = "",
) -> Figure:
    """Points and the front of those that no other one beats; `less_x`: less is better."""
    frame = Frame(title, rests_on, height=4.2)
    (axes,) = frame.panels
    axes.set_ylabel(f"{y} ({'less' if less_y else 'more'} is better)")
    frame.label_x(f"{x} ({'less' if less_x else 'more'} is better)")
    points = [point for point in points if np.isfinite(point.x) and np.isfinite(point.y)]
    if not points:
        frame.say(axes, "no run has both figures")
        return frame.done()
    front = on_front(points, less_x=less_x, less_y=less_y)
    for is_first, label, chosen in ((True, "on the front", COLOURS[0]), (False, "beaten by another", GREY)):
        these = [point for point, first in zip(points, front, strict=True) if first is is_first]
        if these:
            axes.errorbar(
                [point.x for point in these],
                [point.y for point in these],
                xerr=_halves([point.x_half for point in these]),
                yerr=_halves([point.y_half for point in these]),
                fmt="o" if is_first else "s",
                markersize=6,
                color=chosen,
                capsize=2,
                elinewidth=0.8,
                label=label,
            )
    edge = sorted((point.x, point.y) for point, first in zip(points, front, strict=True) if first)
    where: Literal["post", "pre"] = "post" if less_x == less_y else "pre"
    axes.step(*zip(*edge, strict=True), where=where, color=COLOURS[0], linewidth=1, linestyle="--")
    axes.margins(0.12)
    _name_points(axes, [point for point, first in zip(points, front, strict=True) if first])
    return frame.done()


def _halves(halves: Sequence[float | None]) -> list[float] | None:
    return None if all(half is None for half in halves) else [half or 0.0 for half in halves]


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside the points, up or down by turns so that neighbours leave each other room."""
    low, high = axes.get_xlim()
    for number, point in enumerate(sorted(points, key=lambda point: point.x)[:MOST_NAMED]):
        is_right = point.x < (low + high) / 2
        axes.annotate(
            point.name,
            (point.x, point.y),
            xytext=(6 if is_right else -6, 5 if number % 2 else -11),
            textcoords="offset points",
            ha="left" if is_right else "right",
            fontsize=8,
        )


def heat_map(table: pd.DataFrame, *, title: str, unit: str, less: bool = True, rests_on: str = "") -> Figure:
    """A cell a row and column of the table, its figure in it; the best cell of each column has a frame.

    Cividis, which all eyes see alike; darker is better. A cell without a figure is hatched.
    """
    names = [str(name) for name in table.index]
    heads = [str(name) for name in table.columns]
    frame = Frame(title, rests_on, height=max(1.2, 0.34 * len(names)), left=room_for(names))
    (axes,) = frame.panels
    axes.grid(visible=False)
    values = table.to_numpy(dtype=np.float64)
    if not np.isfinite(values).any():
        frame.say(axes, "there is no figure to show")
        return frame.done()
    axes.set_facecolor("#EEEEEE")
    image = axes.imshow(values, cmap="cividis" if less else "cividis_r", aspect="auto")
    slanted = sum(map(len, heads)) > MOST_LETTERS_OF_HEADS
    axes.set_xticks(
        range(len(heads)), heads, rotation=20 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_yticks(range(len(names)), names)
    middle = (float(np.nanmin(values)) + float(np.nanmax(values))) / 2
    best = np.nanargmin if less else np.nanargmax
    for column in range(len(heads)):
        if np.isfinite(values[:, column]).any():
            row = int(best(values[:, column]))
            axes.add_patch(_box(column, row))
        for row in range(len(names) if values.size <= MOST_CELLS_WITH_FIGURES else 0):
            value = values[row, column]
            is_dark = (value < middle) is less
            text, ink = (
                (f"{value:.3g}", "white" if is_dark else "black") if np.isfinite(value) else ("-", "black")
            )
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    bar = frame.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label(f"{unit} ({'less' if less else 'more'} is better)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return frame.done()


def _box(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="#D55E00", linewidth=2)


def forest(
    rows: Sequence[ForestRow], *, unit: str, title: str = "Paired differences", rests_on: str = ""
) -> Figure:
    """A line a difference, with its interval; what does not touch the line at 0 is a difference that is seen."""
    frame = Frame(
        title, rests_on, height=max(0.7, 0.27 * len(rows)), left=room_for([row.name for row in rows])
    )
    (axes,) = frame.panels
    axes.grid(visible=False, axis="y")
    frame.label_x(unit)
    if not rows:
        frame.say(axes, "there is no difference with an interval")
        axes.set_yticks([])
        return frame.done()
    places = np.arange(len(rows))[::-1]
    for verdict in dict.fromkeys(row.verdict for row in rows):
        these = [(place, row) for place, row in zip(places, rows, strict=True) if row.verdict == verdict]
        means = [row.mean for _, row in these]
        spans = [[row.mean - row.low for _, row in these], [row.high - row.mean for _, row in these]]
        look: Look = {"xerr": spans, "capsize": 3, "color": VERDICTS.get(verdict, "#555555")}
        marker = {"better": "D", "worse": "s"}.get(verdict, "o")
        axes.errorbar(
            means, [place for place, _ in these], fmt=marker, markersize=5, label=verdict or None, **look
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    return frame.done()


def draw_agreement(axes: Axes, real: Floats, simulated: Floats, *, name: str, unit: str) -> None:
    """Each point in both worlds, with y = x and 5 % to both sides, on log scales."""
    axes.plot(real, simulated, "o", markersize=2.5, alpha=0.4, markeredgewidth=0, color=COLOURS[0])
    both = np.concatenate([real, simulated])
    above = both[both > 0]
    ends = np.array([above.min(), above.max()]) if len(above) else np.array([1.0, 10.0])
    axes.plot(ends, ends, color="black", linewidth=1, label="y = x")
    near: Look = {"color": "grey", "alpha": 0.25, "linewidth": 0}
    axes.fill_between(ends, ends * (1 - MARGIN), ends * (1 + MARGIN), label="5 % to both sides", **near)
    for axis in (axes.xaxis, axes.yaxis):
        logarithmic(axis, float(ends[0]), float(ends[1]))
    axes.set(xlabel=f"real {name}, {unit}", ylabel=f"simulated {name}, {unit}")


def draw_residuals(axes: Axes, foreseen: Floats, took: Floats, *, name: str, index: int = 0) -> None:
    """What things took over what was foreseen of them: a dot each, and medians of a hundred of about one size."""
    order = np.argsort(foreseen, kind="stable")
    said, ratios = foreseen[order], took[order] / foreseen[order]
    axes.plot(said, ratios, "o", markersize=2, alpha=0.25, markeredgewidth=0, color=colour(index))
    parts = range(0, len(said), TOGETHER)
    at = [float(np.median(said[first : first + TOGETHER])) for first in parts]
    medians = [float(np.median(ratios[first : first + TOGETHER])) for first in parts]
    axes.plot(at, medians, style(index), color=colour(index), linewidth=1.5, label=name)
    axes.axhline(1, color="black", linewidth=0.8)


def agreement(
    pairs: Mapping[str, tuple[Floats, Floats]],
    *,
    unit: str,
    title: str = "Simulated against real",
    rests_on: str = "",
) -> Figure:
    """A panel a figure: what was real and what was simulated of the same things, in the same order."""
    frame = Frame(title, rests_on, columns=max(1, len(pairs)), sharex=False, height=3.4)
    if not pairs:
        frame.say(frame.panels[0], "nothing was both real and simulated")
    for axes, (name, (real, simulated)) in zip(frame.panels, pairs.items(), strict=False):
        if len(real):
            draw_agreement(axes, real, simulated, name=name, unit=unit)
        else:
            frame.say(axes, f"{name}: nothing to compare")
    return frame.done()


def residuals(
    groups: Mapping[str, tuple[Floats, Floats]],
    *,
    unit: str,
    title: str = "What took how much longer than foreseen",
    rests_on: str = "",
) -> Figure:
    """Ratios of what things took to what was foreseen of them, by what was foreseen; a colour a group."""
    frame = Frame(title, rests_on)
    (axes,) = frame.panels
    frame.label_x(f"foreseen, {unit}")
    axes.set_ylabel("took / foreseen")
    whole = {name: sides for name, sides in groups.items() if len(sides[0])}
    for index, (name, (foreseen, took)) in enumerate(whole.items()):
        draw_residuals(axes, foreseen, took, name=f"{name}, n={len(foreseen)}", index=index)
    if whole:
        logarithmic_if_possible(axes.xaxis, np.concatenate([foreseen for foreseen, _ in whole.values()]))
    else:
        frame.say(axes, "nothing was measured")
    return frame.done()

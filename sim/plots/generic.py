"""Pictures of plain tables: Pareto front, heat map, forest of differences, agreement, residuals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sim.intervals import Interval
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
MOST_NAMED = 12
NEAR = np.array([0.025, 0.04])
"""Shares of the axes, within which two points have one label."""
MOST_CELLS = 400  # of a heat map that has numbers in it
CELL = 0.34  # inches, as the next one
BAR_LABELS = 0.75
MOST_LETTERS_OF_HEADS = 100  # side by side
LEAST_TOGETHER = 20  # points whose median is drawn
MOST_MEDIANS = 40
FEW_DOTS = 500


class Point(NamedTuple):
    """One way to serve: its name, and a mean with its interval on each axis."""

    name: str
    x: Interval
    y: Interval


class ForestRow(NamedTuple):
    """A difference with its interval; the verdict colours it (better, worse, or anything else)."""

    name: str
    mean: float
    low: float
    high: float
    verdict: str = ""


def front(points: Sequence[Point], *, less_x: bool = True, less_y: bool = True) -> list[Point]:
    """Those that no other one equals in one figure and beats in the other, in the order of the first figure."""
    signs = (1.0 if less_x else -1.0), (1.0 if less_y else -1.0)

    def key(point: Point) -> tuple[float, float]:
        return signs[0] * point.x.mean, signs[1] * point.y.mean

    best: list[Point] = []
    for point in sorted(points, key=key):
        if not best or key(point)[1] < key(best[-1])[1] or key(point) == key(best[-1]):
            best.append(point)
    return best


def pareto(
    points: Sequence[Point],
    *,
    x: str,
    y: str,
    less_x: bool = True,
    less_y: bool = True,
    rests_on: str = "",
) -> Figure:
    """All points by two figures; those that no other one beats in both are joined, and numbered as the legend says.

    `less_x`, `less_y`: whether less is better.
    """
    best = front(points, less_x=less_x, less_y=less_y)
    title = f"{counted(len(points), 'configuration')}: {len(best)} (blue) that no other beats in both figures"
    frame = Frame(title, rests_on, height=4.2)
    (axes,) = frame.panels
    axes.set_ylabel(f"{y} ({_direction(less_y)})")
    frame.label_x(f"{x} ({_direction(less_x)})")
    if not points:
        frame.say(axes, "there is no run with both figures")
        return frame.done()
    for point in points:
        is_first = point in best
        axes.errorbar(
            point.x.mean,
            point.y.mean,
            xerr=point.x.half_width or 0.0,
            yerr=point.y.half_width or 0.0,
            fmt="o" if is_first else "s",
            color=COLOURS[0] if is_first else GREY,
            markersize=7 if is_first else 5,
            capsize=2,
            elinewidth=0.8,
            zorder=3 if is_first else 2,
        )
    edge = [(point.x.mean, point.y.mean) for point in best]
    axes.step(*zip(*edge, strict=True), where="post", color=COLOURS[0], linewidth=1, zorder=1)
    axes.margins(0.12)
    _number(axes, best)
    return frame.done()


def _number(axes: Axes, best: Sequence[Point]) -> None:
    """A number beside each point of the front, and in the legend whose it is: names are too long there."""
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    near = NEAR * np.ptp(limits, axis=1)
    there: list[tuple[tuple[float, float], list[str]]] = []
    for number, point in enumerate(best[:MOST_NAMED], start=1):
        place = point.x.mean, point.y.mean
        axes.plot([], [], " ", label=f"{number}  {point.name}")
        if there and (np.abs(np.subtract(place, there[-1][0])) < near).all():
            there[-1][1].append(str(number))
        else:
            there.append((place, [str(number)]))
    for place, numbers in there:
        look: Look = {"color": COLOURS[0], "weight": "bold", "fontsize": 9}
        axes.annotate(", ".join(numbers), place, xytext=(6, 6), textcoords="offset points", **look)


def _direction(less: bool) -> str:
    return "less is better" if less else "more is better"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def heat_map(
    table: pd.DataFrame,
    *,
    title: str,
    unit: str,
    less: bool = True,
    halves: pd.DataFrame | None = None,
    rests_on: str = "",
) -> Figure:
    """A cell a row and column of the table, its figure in it; the best cell of each column has a frame.

    The colours are those of cividis, which all eyes see alike; `less`: less is better. `halves`: half-widths.
    """
    names, heads = [str(name) for name in table.index], [str(name) for name in table.columns]
    line = CELL if halves is None else 1.6 * CELL
    room: Look = {"left": room_for(names), "right": BAR_LABELS}
    frame = Frame(
        f"{title}, {unit}: {_direction(less)}", rests_on, height=max(1.2, line * len(names)), **room
    )
    (axes,) = frame.panels
    axes.grid(visible=False)
    frame.label_x(str(table.columns.name or ""))
    axes.set_ylabel(str(table.index.name or ""))
    cells = table.to_numpy(dtype=np.float64)
    if not np.isfinite(cells).any():
        axes.set(xticks=[], yticks=[])
        frame.say(axes, "there is no figure to show")
        return frame.done()
    image = axes.imshow(np.ma.masked_invalid(cells), cmap="cividis", aspect="auto")
    slanted = sum(map(len, heads)) > MOST_LETTERS_OF_HEADS
    turned: Look = {"rotation": 20, "ha": "right"} if slanted else {}
    axes.set_xticks(range(len(heads)), heads, **turned)
    axes.set_yticks(range(len(names)), names)
    best = np.nanargmin if less else np.nanargmax
    for column in range(len(heads)):
        if len(names) > 1 and np.isfinite(cells[:, column]).any():
            axes.add_patch(_box(column, int(best(cells[:, column]))))
    if cells.size <= MOST_CELLS:
        _write_cells(
            axes, cells, np.full_like(cells, np.nan) if halves is None else halves.to_numpy(dtype=float)
        )
    bar = frame.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    return frame.done()


def _write_cells(axes: Axes, cells: Floats, halves: Floats) -> None:
    """White on what is dark; "none" where there is no figure."""
    middle = (float(np.nanmin(cells)) + float(np.nanmax(cells))) / 2
    for (row, column), value in np.ndenumerate(cells):
        half = halves[row, column]
        text = "none" if np.isnan(value) else f"{value:.3g}" + ("" if np.isnan(half) else f"\n+- {half:.2g}")
        ink = "white" if value <= middle else "black"  # where there is none, the ground is white
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)


def _box(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor=COLOURS[5], linewidth=2)


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
    axes.plot(real, simulated, "o", markeredgewidth=0, color=COLOURS[0], **_dots(len(real)))
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
    """What things took over what was foreseen of them: a dot each, and medians of those of about one size."""
    order = np.argsort(foreseen, kind="stable")
    said, ratios = foreseen[order], took[order] / foreseen[order]
    axes.plot(said, ratios, "o", markeredgewidth=0, color=colour(index), **_dots(len(said)))
    parts = np.array_split(np.arange(len(said)), max(1, min(MOST_MEDIANS, len(said) // LEAST_TOGETHER)))
    at = [float(np.median(said[part])) for part in parts if len(part)]
    medians = [float(np.median(ratios[part])) for part in parts if len(part)]
    axes.plot(at, medians, style(index), color=colour(index), linewidth=1.5, label=name)
    axes.axhline(1, color="black", linewidth=0.8)


def _dots(count: int) -> Look:
    """Large where they are few."""
    return {"markersize": 4, "alpha": 0.6} if count <= FEW_DOTS else {"markersize": 2.5, "alpha": 0.3}


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

"""What all pictures share: a titled figure with panels, marks, one legend, and its PNG.

Figures are made without pyplot, so nothing global changes and no display is needed. Margins are reckoned here, in
inches: a layout engine would draw every text twice more to find them. Nor do axes draw what says nothing, such as the
little lines of ticks beside a grid.
"""

import io
from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from sim.drawing import MARKS
from sim.marks import marks_of, outages, start_s
from sim.metrics import Floats
from sim.runs import Run

# Okabe and Ito, "Color universal design" (2008); black is kept for marks and peaks
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
STYLES = ("-", "--", "-.", ":")
GREY = "#999999"
DPI = 110
WIDTH = 9.0  # inches, as all that follow here
RIGHT, LEFT, TITLE, X_LABEL = 0.2, 0.95, 0.55, 0.5
LABEL_ROW, LEGEND_ROW = 0.145, 0.2
HEIGHTS = {1: 3.1, 2: 2.0}
MANY_HEIGHT = 1.45
Look = dict[str, Any]
"""What matplotlib is told of colours, lines and labels."""
LETTER = 0.062  # of text at 8 points, wide
LETTER_PIXELS = 7.0  # the same, as a mark's name has it
LEGEND_HANDLE = 0.65
MOST_LABEL_ROWS = 4
MOST_TICKS = 9
FEW_TICKS = 4
STEPS: dict[float, tuple[float, ...]] = {
    0.7: (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    2.5: (1, 2, 5),
    float("inf"): (1,),
}
"""Where a log scale has ticks, by the decades that it spans at most."""


class Picture(Figure):
    """A figure that a notebook shows by itself, as the PNG that a report has."""

    def _repr_png_(self) -> bytes:
        return png(self)


class Frame:
    """Panels below each other, or in columns, that share the x axis; laid out when all is in them."""

    def __init__(
        self,
        title: str,
        rests_on: str,
        rows: int = 1,
        *,
        columns: int = 1,
        sharex: bool = True,
        sharey: bool = False,
        left: float = LEFT,
        right: float = RIGHT,
        height: float | None = None,
    ) -> None:
        """`rests_on`: n, seeds and intervals. `height`: of a panel; `left`, `right`: room for its labels."""
        self.figure = Picture(figsize=(WIDTH, 3.0), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self.figure.suptitle(f"{title}\n{rests_on}" if rests_on else title, fontsize=11)
        self._left, self._rows, self._columns, self._sharex = left, rows, columns, sharex
        self._height = height or HEIGHTS.get(rows, MANY_HEIGHT)
        self._label_rows = 0
        self.figure.subplots_adjust(left=left / WIDTH, right=1 - right / WIDTH, wspace=0.16 * columns)
        grid = self.figure.subplots(
            rows,
            columns,
            sharex=sharex,
            sharey="col" if sharey else "none",
            squeeze=False,
            subplot_kw={"axisbelow": True},
        )
        self.panels: list[Axes] = list(grid.ravel())
        for axes in self.panels:
            axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
            axes.tick_params(which="both", length=0, left=False, bottom=False, labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)

    def over_time(self, run: Run) -> None:
        """The x axis is the virtual time of the whole run; the start of a steady one is shaded."""
        self.panels[0].set_xlim(0, run.manifest["virtual_s"] or 1.0)
        self.panels[0].xaxis.set_major_locator(round_ticks(MOST_TICKS))
        self.label_x("virtual time, s")
        start = start_s(run)
        if start is not None:
            label = "start of the run (MSER-5)" if start[1] else "not yet steady at half of the run (MSER-5)"
            for axes in self.panels:
                axes.axvspan(0, start[0], color=GREY, alpha=0.2, linewidth=0, zorder=0, label=label)

    def label_x(self, text: str) -> None:
        """Below the last row."""
        for axes in self.panels[-self._columns :]:
            axes.set_xlabel(text, fontsize=9)

    def mark(self, run: Run, axes: Axes, *, only: str | None = None, named: bool = True) -> None:
        """Lines where a replica crashed, fell ill in the router's eyes, came back, was well; outages are shaded.

        `only` is the replica that a panel is about; without it, the marks of all are drawn.
        """
        draw_marks(run, axes, only)
        if named:
            self._label_rows = max(self._label_rows, label_marks(run, axes, only))

    def say(self, axes: Axes, sentence: str) -> None:
        """What a panel says that has nothing to show."""
        axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes, color="#555555")

    def done(self, *legends: Axes) -> Figure:
        """The figure, laid out, with one legend of these panels (of all, without any) below all of them."""
        handles: dict[str, Any] = {}
        for axes in legends or self.panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        legend_rows = self._legend(handles) if handles else 0
        above = self._label_rows * LABEL_ROW
        gap = above + (0.18 if self._sharex else 0.45)
        top, bottom = TITLE + 0.05 + above, X_LABEL + legend_rows * LEGEND_ROW + 0.06 * bool(legend_rows)
        height = top + bottom + self._rows * self._height + (self._rows - 1) * gap
        self.figure.set_size_inches(WIDTH, height)
        self.figure.subplots_adjust(top=1 - top / height, bottom=bottom / height, hspace=gap / self._height)
        if self.figure._suptitle is not None:  # type: ignore[attr-defined] # noqa: SLF001  there is no other way to it
            self.figure._suptitle.set_y(1 - 0.08 / height)  # type: ignore[attr-defined] # noqa: SLF001
        return self.figure

    def _legend(self, handles: dict[str, Any]) -> int:
        """The rows that it takes."""
        widest = max(map(len, handles)) * LETTER + LEGEND_HANDLE
        columns = max(1, min(len(handles), floor((WIDTH - 2 * RIGHT) / widest)))
        self.figure.legend(
            handles.values(),
            handles,
            loc="lower right",
            bbox_to_anchor=(1 - RIGHT / WIDTH, 0.0),
            ncols=columns,
            fontsize=8,
            frameon=False,
            borderaxespad=0.3,
        )
        return ceil(len(handles) / columns)


def of_run(run: Run, note: str = "") -> str:
    """What a picture of a run rests on."""
    manifest = run.manifest
    requests = f"n={len(run.requests)}" if len(run.requests) else "no request has ended"
    engine = f"{manifest['strategy']} on {manifest['executor']}"
    return f"{run.name}: {requests}, seed {manifest['seed']}, {engine}{note and f'; {note}'}"


def of_runs(runs: Sequence[Run], note: str = "") -> str:
    """What a picture of several runs rests on."""
    if not runs:
        return "no runs"
    names = ", ".join(dict.fromkeys(run.name for run in runs))
    seeds = sorted({int(run.manifest["seed"]) for run in runs})
    told = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    count = sum(len(run.requests) for run in runs)
    plural = "s" * (len(runs) != 1)
    return f"{names}: {len(runs)} run{plural}, {told}, n={count:,} requests in all{note and f'; {note}'}"


def draw_marks(run: Run, axes: Axes, only: str | None = None) -> None:
    """Without their names; the limits of the x axis stay."""
    times_s: dict[str, list[float]] = {mark: [] for mark in MARKS}
    for at_s, mark, replica in marks_of(run):
        if only in (None, replica):
            times_s[mark].append(at_s)
    for mark, colour in MARKS.items():
        if times_s[mark]:
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


def label_marks(run: Run, axes: Axes, only: str | None = None) -> int:
    """Names of the marks in a few lines above a panel whose limits are set, none on another; how many lines.

    Where marks crowd, those without room go without a name; colour and style of their lines still tell.
    """
    begin_s, end_s = axes.get_xlim()
    s_per_letter = LETTER_PIXELS * (end_s - begin_s) / axes.bbox.width
    taken_until_s = [begin_s] * MOST_LABEL_ROWS
    highest = 0
    for at_s, mark, replica in marks_of(run):
        if only not in (None, replica) or not begin_s <= at_s <= end_s:
            continue
        text = mark if only else f"{replica}: {mark}"
        width_s = (len(text) + 1) * s_per_letter
        left_s = max(begin_s, min(at_s, end_s - width_s))
        row = next((row for row, until_s in enumerate(taken_until_s) if until_s <= left_s), None)
        if row is not None:
            highest = max(highest, row + 1)
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
    return highest


def logarithmic(axis: Axis, low: float, high: float) -> None:
    """A log scale with a few plain numbers on it: at powers of ten only where there are many of them."""
    if axis is axis.axes.xaxis:
        axis.axes.set_xscale("log")
    else:
        axis.axes.set_yscale("log")
    first, last = floor(log10(low)), ceil(log10(high))
    steps = next(steps for decades, steps in STEPS.items() if log10(high / low) <= decades)
    ticks = [step * 10.0**decade for decade in range(first, last + 1) for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low / 2 <= tick <= high * 2]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(plainly))


def logarithmic_if_possible(axis: Axis, values: Floats) -> None:
    """There is no logarithm of nothing."""
    above = values[values > 0]
    if len(above):
        logarithmic(axis, float(above.min()), float(above.max()))


def round_ticks(most: int = FEW_TICKS, *, whole: bool = False) -> MaxNLocator:
    """At about so many places, at round numbers."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole)


def plainly(value: float, _position: int | None) -> str:
    return f"{value:g}"


def steps(
    axes: Axes,
    values: Floats,
    edges: Floats,
    *,
    below: Floats | None = None,
    outline: bool = False,
    **look: Any,
) -> None:
    """A height between each two edges, filled down to `below` or to 0, or only its outline, where NaN is a gap.

    As `Axes.stairs`, which takes ten times as long: it asks a curve of every step where its extremes are.
    """
    if not len(values):
        return
    baseline: Any = None if outline else 0.0 if below is None else below
    if not outline:
        look["linewidth"] = 0.0  # where there is nothing there is no line either
    axes.add_artist(StepPatch(values, edges, baseline=baseline, fill=not outline, **look))
    ends = [*values[np.isfinite(values)], *([] if outline else np.ravel(baseline))]
    if ends:
        axes.update_datalim([(edges[0], min(ends)), (edges[-1], max(ends))])
    axes.autoscale_view(scalex=False)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def style(index: int) -> str:
    """Of a line: another one when the colours begin again."""
    return STYLES[index % len(STYLES)]


def room_for(labels: Sequence[str]) -> float:
    """What the longest line of these takes to the left of a panel."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    return min(3.2, max(LEFT, longest * LETTER + 0.25))


def png(figure: Figure) -> bytes:
    """The picture with at most 256 colours, which takes a third of the bytes; the same for the same figure.

    Names are shown as they are: two dollars in one are no formula, and a letter that the font lacks is a box.
    """
    canvas: Any = FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with catch_warnings():
        filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
    image = Image.fromarray(np.ascontiguousarray(pixels)).quantize(
        256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    file = io.BytesIO()
    image.save(file, "png", compress_level=6, dpi=(DPI, DPI))
    return file.getvalue()

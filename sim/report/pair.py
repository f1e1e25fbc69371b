"""Two runs beside each other: what holds in each, how their figures differ, and which settings do."""

import shlex
from html import escape

from engine.errors import BadSettings
from sim import plots
from sim.beside import ITSELF
from sim.checks import Check, number
from sim.compare import Comparison, compare
from sim.plots import CAPTIONS, png
from sim.report.changes import changes
from sim.report.page import document, html_picture, html_table, paragraphs
from sim.report.said import DIFFERENCE_HEADS, command, difference_cells, facts, headline, keys, shown
from sim.runs import Run

CHECK_HEADS = ("check", "first", "first value", "second", "second value", "bound", "published")
NUMBERS = ("first value", "second value", "bound", "difference", "+-", "n", "p (Holm)")


def html_pair(first: Run, second: Run) -> str:
    """The whole page, pictures inside."""
    comparison, why_not = compared(first, second)
    lines = changes(first.config, second.config)
    title = f"{first.name}: {first.path.name} and {second.path.name}"
    parts = [
        f"<h1>{escape(first.name if first.name == second.name else f'{first.name} and {second.name}')}</h1>",
        '<div class="pair">',
        *(_told(name, run) for name, run in (("First", first), ("Second", second))),
        "</div>",
        "<h2>What differs in the settings</h2>",
        f"<pre>{escape(chr(10).join(lines))}</pre>"
        if lines
        else "<p>Nothing: the settings are the same.</p>",
        "<h2>Checks</h2>",
        html_table(CHECK_HEADS, check_rows(first, second), NUMBERS),
        "<h2>Paired differences, second less first</h2>",
        *_differences(comparison, why_not),
        "<h2>Key figures</h2>",
        html_table(("figure", "first", "second"), figure_rows(first, second), ("first", "second")),
        "<h2>Pictures</h2>",
        *_pictures(first, second),
    ]
    return document(title, parts, wide=True)


def _told(name: str, run: Run) -> str:
    """A column of its own."""
    lines = [
        f"<h2>{name}: {escape(run.path.name)}</h2>",
        *paragraphs([headline(run), *facts(run)]),
        f"<pre>{escape(command(run))}</pre>",
    ]
    return f"<div>{''.join(lines)}</div>"


def compared(first: Run, second: Run) -> tuple[Comparison | None, str]:
    """The paired differences over the seeds of both, or of single requests; or why there are none."""
    sides = [run.beside.get(ITSELF, []) for run in (first, second)]
    try:
        if all(len(side) > 1 for side in sides):
            return compare(*sides), ""
        return compare([first], [second]), ""
    except BadSettings as error:
        return None, f"There are none: {error}."


def _differences(comparison: Comparison | None, why_not: str) -> list[str]:
    if comparison is None:
        return paragraphs([why_not])
    caption = "Paired differences in per cent of the first run, with 95 % intervals."
    return [
        html_table(
            DIFFERENCE_HEADS,
            [difference_cells(row) for row in comparison.rows],
            (*NUMBERS, "first", "second"),
        ),
        html_picture(png(comparison.forest()), caption),
    ]


def check_rows(first: Run, second: Run) -> list[tuple[str, ...]]:
    """Every check of one of the two, in their order, a dash where a run does not have it."""
    sides = [{check.name: check for check in run.checks} for run in (first, second)]
    rows = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        checks = [side.get(name) for side in sides]
        bounds = dict.fromkeys(f"{check.op} {number(check.limit)}" for check in checks if check is not None)
        published = dict.fromkeys(
            check.published for check in checks if check is not None and check.published
        )
        cells = [cell for check in checks for cell in _cells(check)]
        rows.append((name, *cells, ", then ".join(bounds), ", ".join(published)))
    return rows


def _cells(check: Check | None) -> tuple[str, str]:
    return ("-", "-") if check is None else (check.verdict, number(check.value))


def figure_rows(first: Run, second: Run) -> list[tuple[str, str, str]]:
    """Key figures of both, as far as one of them has them."""
    labels = dict([*keys(first), *keys(second)])
    rows = []
    for key, label in labels.items():
        values = [run.summary.get(key) for run in (first, second)]
        if any(value is not None for value in values):
            rows.append((label, number(values[0]), number(values[1])))
    return rows


def _pictures(first: Run, second: Run) -> list[str]:
    """Each picture that one of them has, both beside each other."""
    both = [shown(run) for run in (first, second)]
    parts = []
    for name in plots.plots:
        if name in both[0] or name in both[1]:
            cells = [
                html_picture(png(plots.plots[name](run)), f"{where}: {CAPTIONS[name]}")
                if name in has
                else f"<p>{where}: nothing to see.</p>"
                for where, run, has in zip(("First", "Second"), (first, second), both, strict=True)
            ]
            parts.append(f'<div class="pair">{"".join(cells)}</div>')
    return parts


def change_command(first: Run, second: Run) -> str:
    """The command of the first run with what makes it the second."""
    return " ".join([command(first), shlex.join(changes(first.config, second.config))])

"""What is said of a comparison: every cell, real and simulated, with its error, the noise floor and the mark."""

import base64
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, asdict, fields
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sim.fidelity.bench import CaseResult
from sim.fidelity.compare import ALL_DECISIONS, FAIL, INCONCLUSIVE, LATENCIES, PASS, Cell, Distance, Share
from sim.fidelity.pictures import CAPTIONS, kind_of
from sim.fidelity.settings import FidelitySettings, Protocol
from sim.report import STYLE

SCHEMA_VERSION = 5

PUBLISHED: tuple[tuple[str, str, str], ...] = (
    ("Vidur", "request latency below 9 %, worst near capacity", "arXiv 2405.05465"),
    (
        "LLMServingSim",
        "mean TTFT -2.8 to -0.7 %, TPOT -0.3 to 0.6 %, latency -1.0 to 0.4 % on 300 requests",
        "its validation page, vLLM 0.19.0",
    ),
    ("Revati", "below 5 %, 5 to 17 times real time", "arXiv 2601.00397"),
    ("BLIS", "median 7 to 9 % on E2E and ITL; E2E 11.79 %, TTFT 22.81 %", "its documentation, PR 944"),
    ("Splitwise", "performance model below 3 %", "its authors, Azure traces"),
)
"""Errors that others report of their own systems, on other engines, machines and loads: beside ours, not instead."""

LEGEND = (
    "Times are a client's, in another process: from the intended time of the request to the news of its first token "
    "and of its end. Errors are signed: positive where the simulation says more. The noise floor is how far two real "
    "runs of the same load lie apart, in the mean over pairs. An error may be its mark, or two floors where that is "
    "more; where the floor is above so many marks as max_floor says, nothing passes, unless the errors of single "
    "rounds lie so close together (spread), and the error is within the mark or twice that. The last column: where "
    "the error of the p99 lies in 95 of 100 resamples of the requests, where a run has fewer than 5,000."
)
NOT_HERE = (
    "Not here: whether configurations come in the same order in both worlds (python -m sim.fidelity rank)."
)

Rows = list[tuple[str, ...]]


def verdict_of(results: Iterable[CaseResult]) -> str:
    """The verdict of all: fail if one case failed, else inconclusive if one was not decided."""
    verdicts = [result.verdict for result in results]
    if FAIL in verdicts:
        return FAIL
    return INCONCLUSIVE if INCONCLUSIVE in verdicts or not verdicts else PASS


def worst_cell(results: Iterable[CaseResult]) -> tuple[CaseResult, Cell] | None:
    """The judged cell that is furthest from reality; None when there is none."""
    judged = [
        (result, cell)
        for result in results
        for cell in result.cells
        if cell.mark is not None and cell.error is not None
    ]
    return max(judged, key=lambda pair: abs(pair[1].error or 0.0), default=None)


def median_error(results: Iterable[CaseResult]) -> float | None:
    """The median |error| of all judged cells."""
    errors = sorted(
        abs(cell.error)
        for result in results
        for cell in result.cells
        if cell.mark is not None and cell.error is not None
    )
    if not errors:
        return None
    middle = len(errors) // 2
    return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2


CELL_HEADS = (
    "figure",
    "real",
    "simulated",
    "off by",
    "error",
    "floor",
    "floors",
    "spread",
    "mark",
    "limit",
    "n",
    "verdict",
    "95 %",
)


def cell_rows(cells: Sequence[Cell]) -> Rows:
    """Cells as text; times in ms, throughput in requests a second."""
    rows: Rows = []
    for cell in cells:
        is_time = cell.metric != "throughput"
        unit = "ms" if is_time else "/s"
        factor = 1_000.0 if is_time else 1.0
        off = None if cell.real is None or cell.simulated is None else cell.simulated - cell.real
        interval = (
            "" if cell.interval is None else f"{percent(cell.interval[0])} to {percent(cell.interval[1])}"
        )
        rows.append(
            (
                f"{cell.name}, {unit}",
                number(cell.real, factor),
                number(cell.simulated, factor),
                number(off, factor, sign="+"),
                percent(cell.error),
                percent(cell.floor, sign=""),
                "" if cell.floors is None else f"{cell.floors:.1f}",
                percent(cell.spread, sign=""),
                percent(cell.mark, sign=""),
                percent(cell.limit, sign=""),
                f"{cell.n:,}",
                cell.verdict,
                interval,
            )
        )
    return rows


SUMMARY_CELLS = ("TTFT mean", "TPOT mean", "E2E mean", "TTFT p99", "TPOT p99", "E2E p99", "throughput")
SUMMARY_HEADS = ("case", "load", *SUMMARY_CELLS, "equal decisions", "verdict")
UNTOLD_HEADS = ("case", *SUMMARY_CELLS, "spread of E2E mean", "where it is told")
UNTOLD = (
    "The same errors where the simulation is not told how fast the machine was, moment by moment: what is worse here "
    "was the machine. Nothing is judged by these."
)
PUBLISHED_HEADS = ("system", "error", "source")
OTHERS = "Other engines, machines and loads: beside these figures, never instead of them."
WIDER = "body { max-width: 80rem; } table { font-size: .85rem; }"

SHARE_HEADS = ("decisions and counts", "simulated to real", "real to real", "limit", "verdict")


def share_rows(shares: Sequence[Share]) -> Rows:
    """Shares as text."""
    rows: Rows = []
    for share in shares:
        limit = "" if share.limit is None else f"{share.op} {100 * share.limit:.2f}"
        sign = "+" if share.op == "+-" else ""
        rows.append(
            (
                f"{share.name}, {'points' if sign else '% equal'}",
                f"{100 * share.value:{sign}.2f}",
                f"{100 * share.floor:.2f}",
                limit,
                share.verdict,
            )
        )
    return rows


def number(value: float | None, factor: float = 1.0, sign: str = "") -> str:
    return "" if value is None else f"{value * factor:{sign}.3f}"


def percent(value: float | None, sign: str = "+") -> str:
    return "" if value is None else f"{100 * value:{sign}.2f} %"


def headline(result: CaseResult) -> str:
    """What a case was, in one line."""
    return f"{result.title}: {result.repeats} x {result.requests:,} requests at {result.rate:.2f}/s"


def notes(result: CaseResult) -> list[str]:
    """What has to be known besides the tables."""
    apart = [
        f"{each.metric}: Wasserstein {percent(each.wasserstein, '')} of the mean (floor {percent(each.floor, '')}), "
        f"median |error| a request {percent(each.median_error, '')} (floor {percent(each.median_floor, '')})"
        for each in result.distances
    ]
    return [
        *apart,
        engine_line(result),
        turns_line(result),
        *yard_lines(result),
        host_line(result),
        way_line(result),
        *voids(result),
    ]


def voids(result: CaseResult) -> list[str]:
    return [f"void: {why}" for why in result.voids]


def engine_line(result: CaseResult) -> str:
    """The means by the engine's own clock, in one line."""
    told = []
    for metric in LATENCIES:
        real, simulated = (result.engine[f"{side} {metric}"] for side in ("real", "simulated"))
        error = simulated / real - 1 if real and simulated is not None else None
        told.append(f"{metric} {number(real, 1e3)} and {number(simulated, 1e3)} ms ({percent(error)})")
    return f"means by the engine's own clock, up to the last token, real and simulated: {', '.join(told)}"


def turns_line(result: CaseResult) -> str:
    """Whether turns took what calibration said: what is off here is the machine's speed, not the queueing."""
    each = ", ".join(percent(ratio - 1) for ratio in result.turns)
    return (
        f"turns of the compared runs, to which nothing was fitted: simulated over real {each}; the least that the "
        f"server got of its core just before a run: {100 * result.core_share:.1f} %"
    )


def yard_lines(result: CaseResult) -> list[str]:
    """How fast the machine was, by its yardstick, which the simulation was told; nothing where it was not taken."""
    if not result.speeds:
        return []
    each = ", ".join(percent(pace - 1) for pace in result.speeds)
    line = (
        f"by the yardstick, which took {100 * result.yard_share:.1f} % of the time, runs took longer than their "
        f"calibrations by {each}: that is told to the simulation, moment by moment"
    )
    return [line]


def host_line(result: CaseResult) -> str:
    """The constants that the simulation was given, in one line."""
    host = result.host
    unknown = ("read_ns", "switch_ns", "arrive_ns", "after_ns", "yard_ns")  # to folders of before
    read_ns, switch_ns, arrive_ns, after_ns, yard_ns = (host.get(name, 0.0) for name in unknown)
    return (
        f"measured around each run: {host['step_ns'] / 1e3:.0f} us of the host a step, "
        f"{switch_ns / 1e3:.0f} us more after one of another model, {arrive_ns / 1e3:.0f} us a request that comes, "
        f"{host['begin_ns'] / 1e3:.0f} us one that begins and {after_ns / 1e3:.0f} us more in the turn after that, "
        f"{host['wake_ns'] / 1e3:+.0f} us after a rest, "
        f"{host['leave_ns'] / 1e3:.0f} us one that leaves and {host['keep_ns']:.0f} ns a token kept of it, "
        f"{host['tier_wait_s'] * 1e3:.2f} ms for a prefix on ssd and {read_ns / 1e3:.0f} us more of turns, "
        f"{yard_ns / 1e3:.0f} us besides each time the yardstick is taken; "
        f"steps take {host['scale']:.3f} times what the cost model says"
    )


def way_line(result: CaseResult) -> str:
    """The delays between the processes and how late the load was, in one line."""
    host = result.host
    return (
        f"on the way: {host['in_ns'] / 1e3:.0f} us to the engine, {host['first_ns'] / 1e3:.0f} us back with the "
        f"first token, {host['end_ns'] / 1e3:.0f} us from the last token to the client; p99 of the schedule delay "
        f"{percent(result.schedule_delay, '')} of the mean latency; simulated {result.speed_up:.0f} times as fast as "
        f"real"
    )


def terminal_tables(result: CaseResult) -> list[Table]:
    """A case for the terminal."""
    made = []
    for title, heads, rows in (
        (f"{result.verdict.upper()}  {headline(result)}", CELL_HEADS, cell_rows(result.cells)),
        (None, SHARE_HEADS, share_rows(result.shares)),
    ):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for position, head in enumerate(heads):
            table.add_column(head, justify="right" if position else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        made.append(table)
    return made


def closing_lines(results: Sequence[CaseResult]) -> list[str]:
    """The whole comparison in a few lines: the verdict, the median and the worst cell."""
    lines = [f"{verdict_of(results).upper()}  {len(results)} cases"]
    middle, worst = median_error(results), worst_cell(results)
    if middle is not None:
        lines.append(f"median |error| of all judged cells {percent(middle, '')}")
    if worst is not None:
        result, cell = worst
        lines.append(f"worst cell: {cell.name} of {result.name}, {percent(cell.error)}")
    return lines


def tables(results: Sequence[CaseResult]) -> list[str]:
    """The summary and the tables of every case, as lines of Markdown."""
    parts = [
        *(f"{line}.  " for line in closing_lines(results)),
        "",
        *grid(SUMMARY_HEADS, summary_rows(results)),
        "",
    ]
    if untold := untold_rows(results):
        parts += [UNTOLD, "", *grid(UNTOLD_HEADS, untold), ""]
    parts += [
        f"- {name}: {capacity:.2f} requests/s at most" for name, capacity in capacities(results).items()
    ]
    parts.append("")
    for result in results:
        parts += [f"## {result.name}: {result.verdict}", "", f"{headline(result)}.", ""]
        parts += [*grid(CELL_HEADS, cell_rows(result.cells)), ""]
        parts += [*grid(SHARE_HEADS, share_rows(result.shares)), ""]
        parts += [*(f"- {note}" for note in notes(result)), ""]
    return parts


def markdown(results: Sequence[CaseResult], pictures: Sequence[str], settings: FidelitySettings) -> str:
    """report.md, whole."""
    parts = ["# Simulation against reality", "", *tables(results)]
    parts += [f"![{CAPTIONS[kind_of(name)]}](plots/{name})" for name in pictures]
    parts += [
        "",
        "## What others report of theirs",
        "",
        *grid(PUBLISHED_HEADS, PUBLISHED),
        "",
        OTHERS,
        "",
        LEGEND,
        "",
    ]
    parts += [NOT_HERE, "", "```bash", command(settings), "```", ""]
    return "\n".join(parts)


def html(
    results: Sequence[CaseResult], pictures: Sequence[str], settings: FidelitySettings, folder: Path
) -> str:
    """report.html, whole: one page, pictures inside."""
    title = "Simulation against reality"
    parts = [f"<h1>{title}</h1>", *(f"<p>{escape(line)}.</p>" for line in closing_lines(results))]
    parts.append(html_grid(SUMMARY_HEADS, summary_rows(results)))
    if untold := untold_rows(results):
        parts += [f"<p>{escape(UNTOLD)}</p>", html_grid(UNTOLD_HEADS, untold)]
    parts.append("<ul>")
    parts += [
        f"<li>{escape(name)}: {most:.2f} requests/s at most</li>"
        for name, most in capacities(results).items()
    ]
    parts.append("</ul>")
    for name in (each for each in pictures if kind_of(each) == each):
        parts.append(html_picture(name, folder))
    for result in results:
        parts.append(
            f'<h2>{escape(result.name)}: <span class="verdict {result.verdict}">{result.verdict}</span></h2>'
        )
        parts.append(f"<p>{escape(headline(result))}.</p>")
        parts.append(html_grid(CELL_HEADS, cell_rows(result.cells)))
        parts.append(html_grid(SHARE_HEADS, share_rows(result.shares)))
        parts += ["<ul>", *(f"<li>{escape(note)}</li>" for note in notes(result)), "</ul>"]
        for name in (each for each in pictures if each.startswith(f"{result.name}_")):
            parts.append(html_picture(name, folder))
    parts += ["<h2>What others report of theirs</h2>", html_grid(PUBLISHED_HEADS, PUBLISHED)]
    parts += [f"<p>{escape(text)}</p>" for text in (OTHERS, LEGEND, NOT_HERE)]
    parts.append(f"<h2>Run it again</h2><pre>{escape(command(settings))}</pre>")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}{WIDER}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def html_grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML; everything but names and verdicts is a figure."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for row in rows:
        cells = [f"<td{html_class(cell)}>{escape(cell)}</td>" for cell in row]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def html_class(cell: str) -> str:
    if cell in (PASS, FAIL, INCONCLUSIVE):
        return f' class="verdict {cell}"'
    return ' class="figure"' if cell[:1] in "+-0123456789" and cell else ""


def html_picture(name: str, folder: Path) -> str:
    data = base64.b64encode((folder / "plots" / name).read_bytes()).decode()
    caption = escape(CAPTIONS[kind_of(name)])
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def command(settings: Protocol, *words: str) -> str:
    """The line that compares again."""
    values = asdict(settings)
    own = [
        f"{each.name}={','.join(value) if isinstance(value, list) else value}"
        for each in fields(settings)
        if each.name not in ("overrides", "resume", "quick")
        and (value := values[each.name]) != default_of(each)
    ]
    return shlex.join(["python", "-m", "sim.fidelity", *words, *own, *settings.overrides])


def default_of(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def summary_rows(results: Sequence[CaseResult]) -> Rows:
    """A line a case: the signed errors of its means and p99, and whether they are within their limits."""
    rows: Rows = []
    for result in results:
        errors = summary_errors(result.cells)
        equal = next(share for share in result.shares if share.name == ALL_DECISIONS)
        rows.append(
            (result.name, f"{100 * result.load:.0f} %", *errors, f"{100 * equal.value:.1f} %", result.verdict)
        )
    return rows


def untold_rows(results: Sequence[CaseResult]) -> Rows:
    """A line a case: the signed errors without the yardstick. Where it was not taken there are none."""
    rows: Rows = []
    for result in results:
        if result.untold:
            spreads = [
                percent(next(cell.spread for cell in found if cell.name == "E2E mean"), sign="")
                for found in (result.untold, result.cells)
            ]
            rows.append((result.name, *summary_errors(result.untold), *spreads))
    return rows


def summary_errors(cells: Iterable[Cell]) -> list[str]:
    """The signed errors that a summary shows."""
    found = {cell.name: cell for cell in cells}
    return [percent(found[name].error) for name in SUMMARY_CELLS]


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def as_json(result: CaseResult) -> dict[str, Any]:
    """A case for fidelity.json: every cell, nothing left out but the single requests."""
    made = {name: getattr(result, name) for name in PLAIN}
    made["verdict"], made["speed_up"] = result.verdict, result.speed_up
    for name in ("cells", "untold", "shares", "distances"):
        made[name] = [asdict(each) for each in getattr(result, name)]
    return made


PLAIN = (
    "name",
    "title",
    "system",
    "load",
    "rate",
    "requests",
    "repeats",
    "engine",
    "schedule_delay",
    "host",
    "turns",
    "core_share",
    "yard_share",
    "speeds",
    "voids",
    "real_s",
    "simulated_s",
)


OF_BEFORE: dict[str, Any] = {"yard_share": 0.0, "speeds": ()}
"""What folders of before there was a yardstick do not have."""


def from_json(values: dict[str, Any]) -> CaseResult:
    """The case that `as_json` made this of."""
    cells, untold = (
        [Cell(**{**each, "interval": _pair(each["interval"])}) for each in told]
        for told in (values["cells"], values.get("untold", ()))
    )
    shares = [Share(**each) for each in values["shares"]]
    spread = [Distance(**each) for each in values["distances"]]
    return CaseResult(
        **{name: (OF_BEFORE | values)[name] for name in PLAIN},
        cells=cells,
        untold=untold,
        shares=shares,
        distances=spread,
    )


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def capacities(results: Iterable[CaseResult]) -> dict[str, float]:
    """What each system was found to serve, in requests a second."""
    return {result.system: result.capacity for result in results}

"""What is said of a comparison: every cell, real and simulated, with its error, the noise floor and the mark."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sim.fidelity.bench import CaseResult
from sim.fidelity.compare import FAIL, INCONCLUSIVE, PASS, Cell, Distance, Share

SCHEMA_VERSION = 1

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
    "Errors are signed: positive where the simulation says more. The noise floor is how far two real runs of the "
    "same load lie apart, in the mean over pairs; an error is within its mark up to twice the floor."
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
    "mark",
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
                percent(cell.mark, sign=""),
                f"{cell.n:,}",
                cell.verdict,
                interval,
            )
        )
    return rows


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
    return (
        f"{result.title}: {result.repeats} x {result.requests:,} requests at {result.rate:.2f}/s, "
        f"{result.speed_up:.0f} times real time"
    )


def notes(result: CaseResult) -> list[str]:
    """What has to be known besides the tables."""
    client = result.client
    seen = (
        f"client's side, from intended times, socket included: TTFT mean {number(client['TTFT mean'], 1e3)} ms, E2E "
        f"mean {number(client['E2E mean'], 1e3)} ms; p99 of the schedule delay "
        f"{percent(result.schedule_delay, '')} of that"
    )
    apart = [
        f"{each.metric}: Wasserstein {percent(each.wasserstein, '')} of the mean (floor {percent(each.floor, '')}), "
        f"median |error| a request {percent(each.median_error, '')} (floor {percent(each.median_floor, '')})"
        for each in result.distances
    ]
    return [seen, *apart, host_line(result), *(f"void: {why}" for why in result.voids)]


def host_line(result: CaseResult) -> str:
    """The constants that the simulation was given, in one line."""
    host = result.host
    return (
        f"measured just before each run: {host['step_ns'] / 1e3:.0f} us of the host a step, "
        f"{host['begin_ns'] / 1e3:.0f} us a sequence that begins, {host['retire_ns'] / 1e3:.0f} us one that leaves, "
        f"{host['answer_ns'] / 1e3:.0f} us to answer, {host['tier_wait_s'] * 1e3:.2f} ms for a prefix on ssd; steps "
        f"take {host['scale']:.3f} times what the cost model says"
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


def markdown(results: Sequence[CaseResult], pictures: Sequence[str]) -> str:
    """report.md, whole."""
    parts = ["# Simulation against reality", "", *(f"{line}.  " for line in closing_lines(results)), ""]
    parts += ["## Capacity", ""]
    parts += [f"- {name}: {capacity:.2f} requests/s" for name, capacity in capacities(results).items()]
    parts.append("")
    for result in results:
        parts += [f"## {result.name}: {result.verdict}", "", f"{headline(result)}.", ""]
        parts += [
            *grid(CELL_HEADS, cell_rows(result.cells)),
            "",
            *grid(SHARE_HEADS, share_rows(result.shares)),
            "",
        ]
        parts += [*(f"- {note}" for note in notes(result)), ""]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["", "## What others report of theirs", ""]
    parts += grid(("system", "error", "source"), PUBLISHED)
    parts += [
        "",
        "Other engines, machines and loads: beside these figures, never instead of them.",
        "",
        LEGEND,
        "",
    ]
    return "\n".join(parts)


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def as_json(result: CaseResult) -> dict[str, Any]:
    """A case for fidelity.json: every cell, nothing left out but the single requests."""
    made = {name: getattr(result, name) for name in PLAIN}
    made["verdict"], made["speed_up"] = result.verdict, result.speed_up
    for name in ("cells", "shares", "distances"):
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
    "client",
    "schedule_delay",
    "host",
    "voids",
    "real_s",
    "simulated_s",
)


def from_json(values: dict[str, Any]) -> CaseResult:
    """The case that `as_json` made this of."""
    cells = [Cell(**{**each, "interval": _pair(each["interval"])}) for each in values["cells"]]
    shares = [Share(**each) for each in values["shares"]]
    spread = [Distance(**each) for each in values["distances"]]
    return CaseResult(**{name: values[name] for name in PLAIN}, cells=cells, shares=shares, distances=spread)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def capacities(results: Iterable[CaseResult]) -> dict[str, float]:
    """What each system was found to serve, in requests a second."""
    return {result.system: result.capacity for result in results}

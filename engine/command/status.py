"""`python -m engine status`: one page of what a server has in memory, who is served, and what is used up."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from engine.command.jobs import table_of
from engine.command.remote import Door, add_door, door
from engine.errors import BadSettings
from engine.settings import MODES

WIDTH = 160  # of the page where nobody looks at it in a terminal
NUM_JOBS = 5
BAR = 10
NEARLY, FULL = 0.85, 1.0
MINUTE, HOUR, DAY = 60, 3600, 86_400
COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red", "unloaded": "dim"}


def add_status(command: argparse.ArgumentParser) -> None:
    """The command line of `status`."""
    add_door(command)
    command.add_argument("--json", action="store_true", help="as the server answers")
    command.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Print the page. Raises NoAnswer, BadSettings."""
    at = door(chosen)
    status = at.asked("GET", "/admin/status")
    if chosen.json:
        print(json.dumps(status))
        return 0
    console().print(page(status), latest_jobs(at))
    return 0


def console() -> Console:
    """Wide enough for the page where it goes to a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def page(status: Mapping[str, Any]) -> Group:
    """All of a status but its jobs."""
    return Group(headline(status), *_tables(status))


def headline(status: Mapping[str, Any]) -> Text:
    """What it is, since when, and how busy."""
    return Text(
        f"Modelyard {status['version']}, up {duration(status['uptime_s'])}, routing by {status['strategy']}: "
        f"{status['requests_in_service']} requests in service, {status['requests_waiting']} waiting for a quota"
    )


def latest_jobs(at: Door) -> RenderableType:
    """The latest of them; nothing where there are none, or where jobs are switched off."""
    try:
        rows = at.asked("GET", f"/admin/jobs?limit={NUM_JOBS}")["data"]
    except BadSettings:  # no such route
        return ""
    return table_of(rows, first="job") if rows else ""


def _tables(status: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Those that have something in them."""
    yield models(status["models"])
    for table in (
        replicas(status["replicas"]),
        tiers(status["tiers"]),
        quotas(status["quotas"], status["modes"]),
        experiments(status["experiments"]),
    ):
        if table.row_count:
            yield table


def models(rows: Iterable[Mapping[str, Any]], rates: Mapping[str, list[str]] | None = None) -> Table:
    """Models, in memory or not; with `rates` two more columns of what each does."""
    extra = () if rates is None else ("requests/s", "tokens/s", "hit ratio")
    table = Table("model", "state", "replicas", "asked for", "size", *extra, "", box=SIMPLE)
    _right(table, "asked for", "size", *extra)
    for row in rows:
        remarks = (["pinned"] if row["pinned"] else []) + ([row["reason"]] if row["reason"] else [])
        table.add_row(
            escape(row["id"]),
            _state(row["state"]),
            str(len(row["replicas"])),
            f"{row['use_count']:,}",
            size(row["size_bytes"]),
            *([] if rates is None else rates.get(row["id"], ["", "", ""])),
            escape(", ".join(remarks)),
        )
    return table


def replicas(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What each has in hand; `tokens` are in flight."""
    counts = ("running", "waiting", "tokens", "routed", "busy", "TTFT")
    table = Table("replica", "model", "health", "takes", *counts, box=SIMPLE)
    _right(table, *counts)
    for row in rows:
        takes = "drained" if row["is_drained"] else "yes" if row["is_open"] else "no"
        ttft_s = row["ttft_s"]
        table.add_row(
            escape(row["name"]),
            escape(row["model"]),
            _state(row["health"]),
            f"[yellow]{takes}" if takes != "yes" else takes,
            *(f"{row[name]:,}" for name in ("running", "waiting", "tokens_in_flight", "routed")),
            duration(row["busy_s"]),
            "" if ttft_s is None else f"{1000 * ttft_s:.1f} ms",
        )
    return table


def tiers(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """How full the cache is."""
    table = Table("tier", "used", "", "of", "blocks", box=SIMPLE)
    _right(table, "of", "blocks")
    for name, row in rows.items():
        share = row["used_bytes"] / row["capacity_bytes"] if row["capacity_bytes"] else 0.0
        table.add_row(name, bar(share), f"{share:.1%}", size(row["capacity_bytes"]), f"{row['blocks']:,}")
    return table


def quotas(rows: Iterable[Mapping[str, Any]], modes: Iterable[Mapping[str, Any]]) -> Table:
    """What is used of each limit, the fullest first, and how far that makes the service degrade."""
    mode_of = {(row["model_name"], row["tenant"]): MODES[int(row["value"])] for row in modes}
    table = Table("quota of model", "of tenant", "limit", "used", "", "mode", box=SIMPLE)
    for row in sorted(rows, key=lambda row: -row["value"]):
        mode = mode_of.get((row["model_name"], row["tenant"]), "normal")
        table.add_row(
            escape(row["model_name"] or "all"),
            escape(row["tenant"] or "all"),
            row["kind"].replace("_", " "),
            bar(row["value"]),
            f"{row['value']:.1%}",
            mode if mode == "normal" else f"[yellow]{mode}[/]",
        )
    return table


def experiments(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """The arms of each, with their shares."""
    table = Table("experiment", "arms", box=SIMPLE)
    for name, arms in rows.items():
        shares = [f"{arm.removeprefix(f'{name}/')} {share:.0%}" for arm, share in arms.items()]
        table.add_row(escape(name), escape(", ".join(shares)))
    return table


def bar(share: float) -> str:
    """A share as a bar, red where nothing is left."""
    full = round(BAR * min(1.0, max(0.0, share)))
    colour = "red" if share >= FULL else "yellow" if share >= NEARLY else "green"
    return f"[{colour}]{'█' * full}[/][dim]{'·' * (BAR - full)}[/]"


def size(number: float) -> str:
    """Bytes with the prefix that leaves them readable."""
    for power, prefix in ((3, "G"), (2, "M"), (1, "k")):
        if number >= 1000**power:
            return f"{number / 1000**power:.1f} {prefix}B"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def _state(word: str) -> str:
    colour = COLOURS.get(word, "yellow")
    return f"[{colour}]{word}[/]"


def _right(table: Table, *names: str) -> None:
    for column in table.columns:
        if column.header in names:
            column.justify = "right"

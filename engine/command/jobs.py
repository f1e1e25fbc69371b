"""Jobs of a server that runs, for people: what waits, what runs and how it went, over the operators' port."""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.clock import NS_PER_S, utc_text
from engine.command.remote import add_door, door
from engine.errors import BadSettings

WIDTH = 140  # of the table where nobody looks at it in a terminal


def add_jobs(jobs: argparse.ArgumentParser) -> None:
    """The command line of `jobs`: what to do with them, and where."""
    verbs = jobs.add_subparsers(required=True, metavar="VERB")
    listed = verbs.add_parser("list", help="what waits, runs and is over, the latest first")
    listed.add_argument("--state", help="only those: queued, running, done, failed or cancelled")
    listed.add_argument("--kind", help="only jobs of that kind")
    listed.add_argument("--limit", type=int, default=20, help="default: %(default)s")
    listed.set_defaults(do=_list)
    shown = verbs.add_parser("show", help="all of one job")
    shown.add_argument("id", type=int)
    shown.set_defaults(do=_show)
    begun = verbs.add_parser("run", help="have something done; without a kind: what there is")
    begun.add_argument("kind", nargs="?")
    begun.add_argument(
        "arguments", nargs="*", metavar="NAME=VALUE", help="a value is JSON, or a text where it is none"
    )
    begun.set_defaults(do=_begin)
    ended = verbs.add_parser("cancel", help="let a job end")
    ended.add_argument("id", type=int)
    ended.set_defaults(do=_cancel)
    for verb in (listed, shown, begun, ended):
        add_door(verb)
        verb.add_argument("--json", action="store_true", help="as the server answers")
    jobs.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Do what was chosen; the exit code. Raises NoAnswer, BadSettings."""
    told = chosen.do(chosen)
    if chosen.json:
        print(json.dumps(told))
    elif "data" in told:
        _print(told["data"])
    else:
        print(json.dumps(told, indent=2))
    return 0


def _list(chosen: argparse.Namespace) -> Any:
    wanted = {"state": chosen.state, "kind": chosen.kind, "limit": chosen.limit}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    return door(chosen).asked("GET", f"/admin/jobs?{query}")


def _show(chosen: argparse.Namespace) -> Any:
    return door(chosen).asked("GET", f"/admin/jobs/{chosen.id}")


def _cancel(chosen: argparse.Namespace) -> Any:
    return door(chosen).asked("POST", f"/admin/jobs/{chosen.id}/cancel", {})


def _begin(chosen: argparse.Namespace) -> Any:
    if chosen.kind is None:
        return door(chosen).asked("GET", "/admin/jobs/kinds")
    arguments = dict(map(_argument, chosen.arguments))
    return door(chosen).asked("POST", "/admin/jobs", {"kind": chosen.kind, "arguments": arguments})


def _argument(text: str) -> tuple[str, Any]:
    name, is_given, value = text.partition("=")
    if not is_given:
        raise BadSettings(f"the argument is {text!r}, but must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def table_of(rows: Iterable[dict[str, Any]], first: str = "id") -> Table:
    """Jobs, one a row."""
    table = Table(first, "kind", "state", "progress", "tries", "finished", "error", box=SIMPLE)
    for row in rows:
        finished = row["finished"]
        when = "" if finished is None else utc_text(round(finished * NS_PER_S))
        table.add_row(
            str(row["id"]),
            row["kind"],
            row["state"],
            _progress(row["progress"]),
            str(row["attempts"]),
            when,
            escape(row["error"] or ""),
        )
    return table


def _print(rows: list[dict[str, Any]]) -> None:
    """A table of jobs, or of kinds of them."""
    table = table_of(rows) if not rows or "does" not in rows[0] else _kinds(rows)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _kinds(rows: list[dict[str, Any]]) -> Table:
    table = Table("kind", "arguments", "does", box=SIMPLE)
    for row in rows:
        table.add_row(row["kind"], ", ".join(row["arguments"]), row["does"])
    return table


def _progress(progress: dict[str, Any]) -> str:
    done, total = progress["done"], progress["total"]
    return f"{done} of {total}" if total is not None else str(done) if done else ""

"""Jobs of a server that runs, for people: what waits, what runs and how it went, over the operators' port."""

import argparse
import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from engine.clock import utc_text
from engine.errors import BadSettings, EngineError

ADMIN = "http://127.0.0.1:8001"
TIMEOUT_S = 30.0
NS_PER_S = 1_000_000_000
CLIENT_ERRORS = range(400, 500)


class NoAnswer(EngineError):
    """The server is not there, or has refused."""

    reason = "no_answer"


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
        verb.add_argument("--admin", default=ADMIN, help="the operators' port; default: %(default)s")
        verb.add_argument("--key", help="an operator's key, where there are keys")
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
    return asked(chosen, "GET", f"/admin/jobs?{query}")


def _show(chosen: argparse.Namespace) -> Any:
    return asked(chosen, "GET", f"/admin/jobs/{chosen.id}")


def _cancel(chosen: argparse.Namespace) -> Any:
    return asked(chosen, "POST", f"/admin/jobs/{chosen.id}/cancel", {})


def _begin(chosen: argparse.Namespace) -> Any:
    if chosen.kind is None:
        return asked(chosen, "GET", "/admin/jobs/kinds")
    arguments = dict(map(_argument, chosen.arguments))
    return asked(chosen, "POST", "/admin/jobs", {"kind": chosen.kind, "arguments": arguments})


def _argument(text: str) -> tuple[str, Any]:
    name, is_given, value = text.partition("=")
    if not is_given:
        raise BadSettings(f"the argument is {text!r}, but must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def asked(chosen: argparse.Namespace, method: str, path: str, body: Any = None) -> Any:
    """What the server answers. Raises NoAnswer with its words, BadSettings for what it says is wrong."""
    url = chosen.admin.rstrip("/") + quote(path, safe="/?=&%")
    if not url.startswith(("http://", "https://")):
        raise BadSettings(f"--admin is {chosen.admin!r}, but must begin with http:// or https://")
    headers = {"content-type": "application/json"}
    if chosen.key is not None:
        headers["authorization"] = f"Bearer {chosen.key}"
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, headers, method=method)  # noqa: S310  its scheme was looked at
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return json.load(answer)
    except HTTPError as error:
        why = _why(error)
        raise (BadSettings if error.code in CLIENT_ERRORS else NoAnswer)(why) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise NoAnswer(f"{chosen.admin} does not answer: {getattr(error, 'reason', error)}") from error


def _why(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server has answered {error.code}"


def _print(rows: list[dict[str, Any]]) -> None:
    """A table of jobs, or of kinds of them."""
    console = Console()
    if rows and "does" in rows[0]:
        table = Table("kind", "arguments", "does", box=SIMPLE)
        for row in rows:
            table.add_row(row["kind"], ", ".join(row["arguments"]), row["does"])
    else:
        table = Table("id", "kind", "state", "progress", "tries", "finished", "error", box=SIMPLE)
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
                row["error"] or "",
            )
    console.print(table)


def _progress(progress: dict[str, Any]) -> str:
    done, total = progress["done"], progress["total"]
    return f"{done} of {total}" if total is not None else str(done) if done else ""

"""A models folder, shown: every model with what its header says, and every file that is no good with the reason."""

import sys
import threading
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.registry import Model, Registry
from engine.registry.discovery import Discovery, discover, rescan

GIGA = 1e9
WIDTH = 160  # of the table where nobody looks at it in a terminal


def show(folder: Path, *, as_json: bool, watching: bool) -> int:
    """Print what the folder has; with `watching` again whenever that changes. 1 when nothing in it is good."""
    found = discover(folder)
    _print(found, as_json=as_json)
    if watching:
        from engine.registry.watching import watch  # noqa: PLC0415  needs the extra `watch`

        for _ in watch(folder, threading.Event()):
            found = rescan(found).discovery
            _print(found, as_json=as_json)
    return 0 if found.healthy else 1


def registry_of(found: Discovery) -> Registry:
    """A registry of everything that was found, good or not."""
    registry = Registry()
    registry.learn(found)
    return registry


def _print(found: Discovery, *, as_json: bool) -> None:
    if as_json:
        print(registry_of(found).as_json())
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(
        "model", "family", "parameters", "quantisation", "size", "context", "licence", "file", box=SIMPLE
    )
    table.columns[0].no_wrap = True
    for each in found.found:
        if each.checkpoint is not None and each.is_healthy:
            table.add_row(*map(escape, (*_row(Model.from_checkpoint(each.checkpoint)), each.shown)))
    if found.healthy:
        console.print(table)
    for each in found.unhealthy:
        console.print(f"[red]unhealthy[/red]  {escape(f'{each.shown}: {each.reason}')}", highlight=False)
    counts = f"{len(found.healthy)} models, {len(found.unhealthy)} unhealthy files"
    console.print(f"{counts} in {escape(str(found.folder))}")


def _short(number: float, unit: str) -> str:
    """A number with the prefix that leaves it readable."""
    return f"{number / GIGA:.2f} G{unit}" if number >= GIGA else f"{number / 1e6:.1f} M{unit}"


def _row(model: Model) -> list[str]:
    return [
        model.key,
        model.family,
        _short(model.parameters, ""),
        model.quantisation,
        _short(model.size_bytes, "B"),
        f"{model.context_tokens:,}",
        model.licence or "not said",
    ]

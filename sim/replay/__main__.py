"""`python -m sim.replay mix=B seeds=5`: allocations side by side on the same traffic, with intervals.

0: done. 2: the settings are no good. 130: interrupted; the seeds that were whole are shown.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine.errors import BadSettings
from sim.config import typed
from sim.early import begin
from sim.intervals import Interval
from sim.replay.compare import (
    CLAIRVOYANT,
    IDEAL,
    MIX_BLOCK_TOKENS,
    PUBLISHED,
    WALLS,
    Comparison,
    ReplaySettings,
    compare,
)

USAGE = """usage: python -m sim.replay [SETTING=VALUE ...]

Settings and what they are otherwise:"""
WIDTH = 170  # of a table that is not shown on a terminal


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    if {"--help", "-h"} & set(given):
        out.print(
            f"{USAGE}\n\n{OmegaConf.to_yaml(OmegaConf.structured(ReplaySettings))}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
    try:
        settings = read(given)
        comparison, exit_code = run(settings)
    except BadSettings as error:
        Console(stderr=True, soft_wrap=True).print(f"modelyard: {error}", markup=False, highlight=False)
        return 2
    if comparison.seeds:
        show(settings, comparison, out)
    else:
        out.print("interrupted before the first seed was whole")
    return exit_code


def read(arguments: Sequence[str]) -> ReplaySettings:
    """The settings of the command line. Raises BadSettings."""
    for argument in arguments:
        if "=" not in argument:
            raise BadSettings(f"{argument!r} is no setting: write SETTING=VALUE")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, ValueError) as error:
        raise BadSettings(" ".join(str(error).split())) from error
    return typed(ReplaySettings, values, "replay")


def run(settings: ReplaySettings) -> tuple[Comparison, int]:
    """All seeds, or those before an interrupt, and the exit code."""
    comparison = Comparison()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=settings.num_runs)

        def advance(text: str, done: float) -> None:
            bar.update(task, description=text, completed=comparison.seeds + done)

        try:
            for figures in compare(settings, advance):
                comparison.add(figures)
        except KeyboardInterrupt:
            return comparison, 130
    return comparison, 0


def show(settings: ReplaySettings, comparison: Comparison, out: Console) -> None:
    """The table and what it rests on."""
    out.print(table(settings, comparison))
    out.print(
        f"{_conditions(settings, comparison)}. Means with 95 % intervals by Student's t, differences by pairs. Hits "
        "are of blocks; worst and Jain are those of the models. Walls divide once and for all, by a popularity known "
        "before it moved. Published: an earlier system on another workload, with Jain and evictions a minute.",
        highlight=False,
    )


def _conditions(settings: ReplaySettings, comparison: Comparison) -> str:
    size = f"{settings.capacity:,}" if settings.share is None else f"{settings.share:.0%} of all"
    policies = ", ".join(settings.evictions)
    if settings.path is not None:
        return f"{size} blocks, {policies}"
    tokens, models = settings.block_tokens or MIX_BLOCK_TOKENS, f"{settings.models} models by Zipf"
    seeds = f"{comparison.seeds} of {settings.seeds} seeds"
    return f"{size} blocks of {tokens} tokens, {models} {settings.model_zipf:g}, {policies}, {seeds}"


def table(settings: ReplaySettings, comparison: Comparison) -> Table:
    """A row for each bound and each allocation."""
    what = f"Mix {settings.mix}" if settings.path is None else Path(settings.path).name
    made = Table(
        title=f"{what}: prefix cache hits, %", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    made.add_column("", no_wrap=True)
    shift = ("after shift", "over fair walls") if settings.shifts else ()
    figures = ("tokens", "requests", "worst", "Jain hits", "Jain held", "evicted/min", "published")
    for name in ("hits", "of ideal", "over fair", "over shared", *shift, *figures):
        made.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        made.add_row(*_cells(settings, comparison, row), end_section=row in (CLAIRVOYANT, WALLS[-1]))
    return made


def _cells(settings: ReplaySettings, comparison: Comparison, row: str) -> list[str]:
    hits, ideal = comparison.interval(row, "block_hit_ratio"), comparison.interval(IDEAL, "block_hit_ratio")
    assert hits is not None, "every row has hits"
    assert ideal is not None, "the ideal is a row"
    cells = [row, _percent(hits), f"{100 * hits.mean / ideal.mean:.1f}" if ideal.mean else ""]
    bases = [settings.row(name, settings.evictions[0]) for name in ("fair", "shared")]
    cells += [_gain(comparison, row, base, "block_hit_ratio") for base in bases]
    if settings.shifts:
        cells.append(_percent(comparison.interval(row, "shifted")))
        cells.append(_gain(comparison, row, WALLS[0], "shifted"))
    ratios = ("token_hit_ratio", "request_hit_ratio", "worst_model")
    cells += [_percent(comparison.interval(row, figure), short=True) for figure in ratios]
    for figure in ("fairness", "held_fairness"):
        found = comparison.interval(row, figure)
        cells.append("" if found is None else f"{found.mean:.2f}")
    evicted = comparison.interval(row, "evictions_per_minute")
    cells.append("" if evicted is None else f"{evicted.mean:.0f}")
    cells.append(_published(row))
    return cells


def _gain(comparison: Comparison, row: str, other: str, figure: str) -> str:
    """A signed difference in points; nothing against itself and for bounds."""
    if row in (other, IDEAL, CLAIRVOYANT):
        return ""
    found = comparison.gain(row, other, figure)
    return "" if found is None else f"{100 * found.mean:+.1f}{_plus_minus(found)}"


def _percent(found: Interval | None, *, short: bool = False) -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:.1f}" + ("" if short else _plus_minus(found))


def _plus_minus(found: Interval) -> str:
    return "" if found.half_width is None else f" ±{100 * found.half_width:.1f}"


def _published(row: str) -> str:
    if row not in PUBLISHED:
        return ""
    hits, fairness, evictions = PUBLISHED[row]
    return f"{100 * hits:.0f} {fairness:.2f} {evictions}"


if __name__ == "__main__":
    begin()
    sys.exit(main())

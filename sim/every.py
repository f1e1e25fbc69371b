"""`python -m sim scenario=all`: the ten scenarios side by side, and one table of what they show.

0: all checks of all of them hold. 1: one failed. 2: the settings are no good, and nothing ran. 3: a check could not
be decided. 130: interrupted; the scenarios that were whole are kept, and `resume=FOLDER` goes on with the others.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engine.clock import NS_PER_S, stopwatch_ns
from engine.errors import BadSettings
from sim.checks import Check, number
from sim.config import read
from sim.experiments import Folder, complain, own_settings, progress, resumed, whole_number
from sim.runs import Run, open_run
from sim.workers import Job, Played, play_all, worst_exit_code

TEN = (
    "discovery",
    "cache_aware",
    "quota",
    "failover",
    "affinity",
    "ab_test",
    "dynamic_allocation",
    "global_eviction",
    "degradation",
    "cross_component",
)
ALL = "scenario=all"
LONGEST_FIRST = ("degradation", "cross_component", "dynamic_allocation", "cache_aware", "affinity")
"""Of the ten, so that none of them keeps one worker busy while the others have nothing left to do."""
WIDTH = 150  # of a table that is not shown on a terminal
INTERRUPTED = 130


def asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for all scenarios, or to go on with them."""
    if ALL in arguments:
        return True
    try:
        return len(arguments) == 1 and ALL in resumed(arguments)[1]
    except BadSettings:
        return False


def main(arguments: Sequence[str], console: Console | None = None) -> int:
    """Play the ten with the other lines of a command line; the exit code."""
    begun_ns = stopwatch_ns()
    try:
        resume, asked = resumed(arguments)
        own, lines = own_settings([line for line in asked if line != ALL], ("workers",))
        workers = whole_number("workers", own["workers"]) if "workers" in own else os.cpu_count() or 1
        folder, played = play_ten(lines, workers, asked, resume)
    except BadSettings as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        complain("interrupted; the scenarios that were whole are kept")
        return INTERRUPTED
    runs = {each.number: open_run(each.folder) for each in played if each.error is None}
    folder.write_table("index.csv", _index(played, runs))
    path = folder.publish()
    show(played, runs, (stopwatch_ns() - begun_ns) / NS_PER_S, path, console)
    return worst_exit_code(played)


def play_ten(
    lines: Sequence[str], workers: int, asked: Sequence[str], resume: Path | None
) -> tuple[Folder, list[Played]]:
    """The ten, each on the same lines, in order. Raises BadSettings before anything runs."""
    commands = [(f"scenario={name}", *lines) for name in TEN]
    settings = [read(command) for command in commands]
    folder = Folder(settings[0].report.folder, "all") if resume is None else Folder.resumed(resume, asked)
    if resume is None:
        folder.begin(asked)
    jobs = [
        Job(place, command, folder.path / "runs" / name)
        for place, (name, command) in enumerate(zip(TEN, commands, strict=True))
    ]
    first = [jobs[TEN.index(name)] for name in LONGEST_FIRST]
    order = [*first, *(job for job in jobs if job not in first)]
    try:
        with progress(len(jobs), lambda _played: None, shown=True) as told:
            played = play_all(order, workers, told, complain)
    except KeyboardInterrupt:
        complain(f"go on with: python -m sim resume={folder.path}")
        raise
    return folder, sorted(played, key=lambda each: each.number)


def show(
    played: Sequence[Played],
    runs: dict[int, Run],
    wall_s: float,
    path: Path,
    console: Console | None = None,
) -> None:
    """A row a scenario, then what does not hold, and where the rest is."""
    out = console or Console(width=None if Console().is_terminal else WIDTH)
    table = Table(box=SIMPLE_HEAD, title=f"{len(played)} scenarios in {wall_s:.0f} s", title_justify="left")
    for head in ("scenario", "verdict", "checks", "requests", "virtual, s", "real, s"):
        table.add_column(head, justify="left" if head in ("scenario", "verdict") else "right")
    table.add_column("ours, and what was published", ratio=1)
    for each in played:
        name = TEN[each.number]
        if (run := runs.get(each.number)) is None:
            table.add_row(name, each.verdict, "", "", "", "", each.error)
            continue
        holds = sum(check.verdict == "pass" for check in run.checks)
        manifest = run.manifest
        table.add_row(
            name,
            run.verdict,
            f"{holds}/{len(run.checks)}",
            str(run.whole.count),
            f"{manifest['virtual_s']:.0f}",
            f"{_real_s(run):.1f}",
            "\n".join(beside_published(check) for check in run.checks if check.published),
        )
    out.print(table)
    for each in played:
        for check in runs[each.number].checks if each.number in runs else ():
            if check.verdict != "pass":
                bound = f"{number(check.value)} {check.op} {number(check.limit)}"
                line = f"{check.verdict}  {TEN[each.number]}: {check.name}  {bound}  {check.note}"
                out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(f"runs  {path}", markup=False, highlight=False, soft_wrap=True)


def beside_published(check: Check) -> str:
    """A figure of ours beside that of the earlier system."""
    return f"{check.name} {number(check.value)} ({check.published})"


def _real_s(run: Run) -> float:
    """Seconds that the run and those beside it took."""
    beside = [other for name in sorted(run.beside) for other in run.beside[name] if other is not run]
    return float(sum(each.manifest["wall_s"] for each in (run, *beside)))


def _index(played: Sequence[Played], runs: dict[int, Run]) -> pd.DataFrame:
    rows = []
    for each in played:
        checks = runs[each.number].checks if each.number in runs else []
        head = {
            "scenario": TEN[each.number],
            "seed": each.seed,
            "digest": each.digest,
            "error": each.error or "",
        }
        rows += [
            {
                **head,
                "check": check.name,
                "verdict": check.verdict,
                "value": check.value,
                "op": check.op,
                "limit": check.limit,
                "note": check.note,
                "published": check.published,
            }
            for check in checks
        ] or [{**head, "verdict": each.verdict}]
    return pd.DataFrame(rows)

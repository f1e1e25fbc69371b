"""`python -m sim.sweep scenario=steady strategy=round_robin,least_loaded seed=1..5`: every combination, side by side.

0: every run passed. 1: one failed. 2: the settings are no good, and nothing ran. 3: a check could not be decided.
130: interrupted; the runs that were whole are in the index of a folder that is still called `.partial`, and
`resume=FOLDER` goes on with it.
"""

import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engine.errors import BadSettings
from sim.callables import callable_as
from sim.compare import Row, rows_of, show_rows
from sim.config import read
from sim.experiments import (
    MAIN,
    Folder,
    complain,
    own_settings,
    progress,
    resumed,
    table_of,
    whole_number,
)
from sim.workers import Job, Played, play_all

USAGE = """usage: python -m sim.sweep scenario=NAME SETTING=A,B [SETTING=VALUE ...] [seed=1..5] [workers=2]

A setting with values between commas is swept; seed=1..5 stands for 1,2,3,4,5. Each combination is one run; index.csv
has a row for each. The first value of the first swept setting is compared with the others, pair by pair of a seed.

  workers=(cores)   processes that play them; the results are the same whatever their number
  resume=FOLDER     alone: go on with what was interrupted; its runs are not played again

exit codes: 0 all runs passed, 1 one failed, 2 bad settings, 3 undecided, 130 interrupted"""
WIDTH = 130  # of a table that is not shown on a terminal
MOST_RUNS = 100_000
MOST_SHOWN = 24
OPENING, CLOSING = "[{(", ")}]"


@dataclass(slots=True)
class Sweep:
    """All combinations that were played, and what the first swept setting makes of them."""

    path: Path
    swept: dict[str, list[str]]
    index: pd.DataFrame
    """One row a run: the swept settings, seed, verdict, digest, figures."""
    comparisons: dict[str, list[Row]]
    """By the other values of the first swept setting: how they differ from its first value."""
    exit_code: int


def sweep(
    overrides: Sequence[str], *, workers: int | None = None, shown: bool = False, resume: Path | None = None
) -> Sweep:
    """Play every combination of the values between commas. Raises BadSettings before anything runs.

    `resume`: the folder of the same sweep, which was interrupted.
    """
    swept, fixed = parted(overrides)
    labels = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    lines = [(*fixed, *(f"{name}={value}" for name, value in each.items())) for each in labels]
    settings = [read(each) for each in lines]  # all of them, before the first one runs
    asked = [*overrides, *([] if workers is None else [f"workers={workers}"])]
    if resume is None:
        folder = Folder(settings[0].report.folder, f"sweep_{settings[0].scenario.name}")
        folder.begin(asked)
    else:
        folder = Folder.resumed(resume, asked)
    jobs = [Job(number, each, folder.path / "runs" / f"{number:05}") for number, each in enumerate(lines)]
    heard: list[Played] = []
    others = [{name: value for name, value in each.items() if name != "seed"} for each in labels]
    try:
        with progress(len(jobs), heard.append, shown=shown) as told:
            played = play_all(jobs, workers or os.cpu_count() or 1, told, complain)
    except KeyboardInterrupt:
        folder.write_table("index.csv", table_of(heard, others))
        if shown:
            complain(f"go on with: python -m sim.sweep resume={folder.path}")
        raise
    index = table_of(played, others)
    folder.write_table("index.csv", index)
    comparisons = compared(index, {name: values for name, values in swept.items() if name != "seed"})
    told_rows = [{"value": value, **row.told()} for value, rows in comparisons.items() for row in rows]
    folder.write_table("comparisons.csv", pd.DataFrame(told_rows))
    return Sweep(folder.publish(), swept, index, comparisons, max(each.exit_code for each in played))


def parted(overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The settings that are swept, with their values, and the other lines. Raises BadSettings."""
    swept: dict[str, list[str]] = {}
    fixed: list[str] = []
    for line in overrides:
        name, equals, value = line.partition("=")
        values = split(value)
        if name == "seed":
            values = [each for part in values for each in _counted(part)]
        if equals and len(values) > 1:
            twice = [each for each, count in Counter(values).items() if count > 1]
            if twice:
                raise BadSettings(f"{name} is {value!r}, which has {twice[0]!r} twice")
            swept[name] = values
        else:
            fixed.append(line)
    count = 1
    for values in swept.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise BadSettings(f"a sweep of {count:,} runs was asked for, but at most {MOST_RUNS:,} are allowed")
    return swept, fixed


def split(value: str) -> list[str]:
    """The values between commas, where these stand in no brackets and no quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, letter in enumerate(value):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        elif letter == "," and not depth:
            parts.append(value[start:index])
            start = index + 1
    return [*parts, value[start:]]


def _counted(part: str) -> list[str]:
    match = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", part)
    if match is None:
        return [part]
    first, last = map(int, match.groups())
    if last < first or last - first >= MOST_RUNS:
        raise BadSettings(f"seed is {part!r}, but must go from a smaller number to a larger one")
    return [str(seed) for seed in range(first, last + 1)]


def compared(index: pd.DataFrame, swept: Mapping[str, Sequence[str]]) -> dict[str, list[Row]]:
    """How the other values of the first swept setting differ from its first one, over pairs of equal runs."""
    if not swept:
        return {}
    name, values = next(iter(swept.items()))
    keys = [key for key in swept if key != name] + ["seed"]
    whole = index[index["error"] == ""]
    first = whole[whole[name] == values[0]].set_index(keys)
    found = {}
    for value in values[1:]:
        other = whole[whole[name] == value].set_index(keys)
        both = first.index.intersection(other.index, sort=False)
        if len(both):
            found[value] = rows_of(first.loc[both], other.loc[both])
    return found


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    if not given or {"--help", "-h"} & set(given):
        out.print(USAGE, markup=False, highlight=False)
        return 0 if given else 2
    try:
        resume, asked = resumed(given)
        own, lines = own_settings(asked, ("workers",))
        workers = whole_number("workers", own["workers"]) if "workers" in own else None
        found = sweep(lines, workers=workers, shown=True, resume=resume)
    except BadSettings as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        complain("interrupted; the runs that were whole are kept")
        return 130
    show(found, out)
    return found.exit_code


def show(found: Sweep, out: Console) -> None:
    """The means of each combination over its seeds, the comparison, and where the rest is."""
    keys = [name for name in found.swept if name != "seed"]
    figures = [name for name in MAIN if name in found.index]
    chosen = [
        name for name in figures if name.startswith(("mean_", "p99_")) or "_" not in name or "hit" in name
    ]
    table = Table(box=SIMPLE_HEAD, title=f"{len(found.index)} runs; means over seeds")
    for head in (*keys, "runs", *chosen):
        table.add_column(head, justify="left" if head in keys else "right")
    groups = found.index.groupby(keys, sort=False) if keys else [((), found.index)]
    for number, (values, rows) in enumerate(groups):
        if number == MOST_SHOWN:
            break
        means = [rows[name].astype(float).mean() for name in chosen]
        table.add_row(*map(str, values), str(len(rows)), *(f"{value:.4g}" for value in means))
    out.print(table)
    name = keys[0] if keys else ""
    for value, compared_rows in found.comparisons.items():
        show_rows(f"{name}={value} against {name}={found.swept[name][0]}", compared_rows, out)
    for row in found.index[found.index["error"] != ""].itertuples():
        out.print(f"run {row.folder}: {row.error}", markup=False, highlight=False)
    out.print(f"runs  {found.path}", highlight=False, soft_wrap=True)


callable_as(__name__, sweep)

if __name__ == "__main__":
    sys.exit(main())

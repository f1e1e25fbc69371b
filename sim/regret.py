"""`python -m sim.regret`: what routing choices cost against the best alternative in hindsight.

Of a finished run (a folder), every choice by an estimate from what each replica then had to do. Of a configuration, a
sample of choices exactly: the same traffic again, with one decision forced. 0: done. 2: the settings are no good, and
nothing ran. 130: interrupted.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engine.errors import BadSettings
from sim.callables import callable_as
from sim.config import read
from sim.counterfactual import Counterfactual, counterfactual
from sim.early import begin
from sim.experiments import Folder, complain, own_settings, whole_number
from sim.hindsight import figures, regret
from sim.intervals import Interval
from sim.runs import open_run

USAGE = """usage: python -m sim.regret RUN_FOLDER                             every choice, by estimate
       python -m sim.regret scenario=NAME [SETTING=VALUE ...]      a sample of the choices, exactly:

  sample=20              decisions that are made otherwise, once for each other replica of the model
  workers=(cores)        processes that play them; the result is the same whatever their number

exit codes: 0 done, 2 bad settings, 130 interrupted"""
OWN = ("sample", "workers")
WIDTH = 110  # of a table that is not shown on a terminal
WORST = 10

__all__ = ["Counterfactual", "counterfactual", "figures", "main", "regret"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    if not given or {"--help", "-h"} & set(given):
        console.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 0 if given else 2
    out = console if console.is_terminal else Console(width=WIDTH)
    try:
        if len(given) == 1 and "=" not in given[0]:
            _show_estimate(regret(open_run(given[0])), out)
            return 0
        own, lines = own_settings(given, OWN)
        sample = whole_number("sample", own.get("sample", "20"))
        workers = whole_number("workers", own.get("workers", str(os.cpu_count() or 1)))
        settings = read(lines)
        found = counterfactual(lines, sample, workers)
        _show_exact(found, out)
        path = _write(found, settings.report.folder, settings.scenario.name, lines)
        out.print(f"folder  {path}", highlight=False, soft_wrap=True)
    except BadSettings as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        complain("interrupted; nothing is written")
        return 130
    return 0


def _show_estimate(regretted: pd.DataFrame, out: Console) -> None:
    found = figures(regretted)
    if not len(regretted):
        out.print("no choice had an alternative that can be judged", highlight=False)
        return
    worst = regretted.nlargest(WORST, "regret_e2e_s", keep="first")
    out.print(
        _table("the choices that cost most, by estimate", worst, ("regret_e2e_s", "regret_ttft_s", "e2e_s"))
    )
    out.print(
        f"{found['n_regret']} choices judged: in hindsight the best replica would have saved "
        f"{found['mean_regret_e2e_s']:.4g} s a request, {100 * (found['regret_e2e_ratio'] or 0.0):.3g} % of the "
        f"end-to-end time; {100 * (found['best_choice_ratio'] or 0.0):.3g} % were the best ones",
        highlight=False,
        soft_wrap=True,
    )


def _show_exact(found: Counterfactual, out: Console) -> None:
    worst = found.table.nlargest(WORST, "regret_e2e_s", keep="first")
    columns = ("regret_e2e_s", "estimated_e2e_s", "saved_by_all_s", "e2e_s")
    out.print(_table("the choices that cost most, exactly", worst, columns))
    out.print(
        f"{len(found.table)} of {found.num_decisions} decisions made otherwise, in {found.num_runs} runs: the best "
        f"replica would have saved {_interval(found.mean_regret_e2e_s)} s a request, and all requests together "
        f"{_interval(found.mean_saved_by_all_s)} s a decision",
        highlight=False,
        soft_wrap=True,
    )
    if found.rank_correlation is not None:
        out.print(f"rank correlation with the estimate  {found.rank_correlation:.2f}", highlight=False)


def _table(title: str, rows: pd.DataFrame, columns: Sequence[str]) -> Table:
    shown = Table(box=SIMPLE_HEAD, title=title)
    for head in ("request", "at, s", "chosen", "best", "because of"):
        shown.add_column(head)
    for head in columns:
        shown.add_column(head.removesuffix("_s").replace("_", " ") + ", s", justify="right")
    for row in rows.to_dict("records"):
        at_s = row["at_s"] if "at_s" in row else row["at_ns"] / 1e9
        words = [
            str(row["request_id"]),
            f"{at_s:.3f}",
            *(str(row[name]) for name in ("chosen", "best", "reason")),
        ]
        shown.add_row(*words, *(f"{row[name]:.4g}" for name in columns))
    return shown


def _interval(found: Interval) -> str:
    return f"{found.mean:.4g}" + (f" +- {found.half_width:.2g}" if found.half_width is not None else "")


def _write(found: Counterfactual, parent: str, scenario: str, lines: Sequence[str]) -> Path:
    folder = Folder(parent, f"regret_{scenario}")
    folder.write_table("regret.csv", found.table)
    facts = asdict(found)
    del facts["table"]
    for name in ("mean_regret_e2e_s", "mean_saved_by_all_s"):
        facts[name] = getattr(found, name)._asdict()
    (folder.path / "overrides.json").write_text(json.dumps(list(lines), indent=2) + "\n", encoding="utf-8")
    folder.write_json("regret.json", facts)
    return folder.publish()


callable_as(__name__, regret)

if __name__ == "__main__":
    begin()
    sys.exit(main())

"""`python -m sim.replicate scenario=steady replications=10`: a run on many seeds, and how sure its figures are.

0: every run passed. 1: one failed. 2: the settings are no good, and nothing ran. 3: a check could not be decided, or
the runs are too short. 130: interrupted; the runs that were whole are kept in a folder that is still `.partial`, and
`resume=FOLDER` goes on with it.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engine.errors import BadSettings
from engine.settings import at_least, require
from sim import metrics
from sim.apart import leave_if_imported
from sim.callables import callable_as
from sim.config import RunSettings, read
from sim.copies import SAME, are_copies, rows_without_copies, without_copies
from sim.early import begin
from sim.experiments import (
    MAIN,
    Folder,
    complain,
    each_once,
    own_settings,
    progress,
    refuse_if_none_could,
    resumed,
    table_of,
    whole_number,
)
from sim.intervals import Interval, interval
from sim.plan import MOST_SEED
from sim.runs import Run, open_run
from sim.stats import TooShort, warm_up
from sim.workers import Figures, Job, Played, play_all, worst_exit_code

USAGE = """usage: python -m sim.replicate scenario=NAME [SETTING=VALUE ...] [what is below]

  replications=10        runs, on the seeds from the setting `seed` on
  workers=(cores)        processes that play them; the results are the same whatever their number
  until=FIGURE:SHARE,..  go on until the interval's half is below that share of the mean, as in until=mean_ttft_s:2%
  most=100               runs at most, with until
  analysis=terminating   the whole of each run counts; or steady: its start is found (MSER-5) and left out
  resume=FOLDER          alone: go on with what was interrupted; its runs are not played again

exit codes: 0 all runs passed, 1 one failed, 2 bad settings, 3 undecided or too short, 130 interrupted"""
OWN = ("replications", "workers", "until", "most", "analysis")
ANALYSES = ("terminating", "steady")
WIDTH = 110  # of a table that is not shown on a terminal
LEAST = 2
LEAST_STEADY = 10
"""Runs whose average shows where the start ends (Welch)."""


@dataclass(slots=True, kw_only=True)
class ReplicateSettings:
    """How many runs, how many at a time, and when there are enough."""

    replications: int = 10
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    until: Mapping[str, float] = field(default_factory=dict)
    most: int = 100
    analysis: str = "terminating"

    def __post_init__(self) -> None:
        steady = self.analysis == "steady"
        allowed = f"at least {LEAST_STEADY} with analysis=steady: the start of runs is found in their average"
        at_least("replications", self.replications, LEAST)
        require("replications", self.replications, not steady or self.replications >= LEAST_STEADY, allowed)
        at_least("workers", self.workers, 1)
        at_least("most", self.most, self.replications)
        require("analysis", self.analysis, self.analysis in ANALYSES, " or ".join(ANALYSES))
        for name, share in self.until.items():
            require("until", name, name in MAIN, f"one of {', '.join(MAIN)}")
            require(f"until={name}", share, 0 < share < 1, "above 0 and below 100 %")


@dataclass(slots=True)
class Replications:
    """Independent runs of one configuration, and the interval of each figure over them.

    There is none where nothing is drawn, so that all of them are the same run (`sim.copies`).
    """

    path: Path
    analysis: str
    warm_up: float
    """The share of each run that was left out as its start."""
    stopped_by: str
    runs: pd.DataFrame
    """One row a run: seed, verdict, digest, figures."""
    intervals: dict[str, Interval]
    exit_code: int
    missing: list[Played] = field(default_factory=list)
    """Runs that the machine could not play; the folder is still `.partial`."""


def replicate(
    scenario: str, overrides: Sequence[str] = (), *, shown: bool = False, **options: Any
) -> Replications:
    """Play a scenario on many seeds. `options` are those of ReplicateSettings.

    Raises BadSettings before anything runs; TooShort when analysis=steady and the runs do not outlast their start.
    """
    leave_if_imported()
    settings = ReplicateSettings(**options)
    lines = [f"scenario={scenario}", *overrides]
    return _Experiment(settings, read(lines), lines, shown=shown).play()


def arguments_of(settings: ReplicateSettings, lines: Sequence[str]) -> list[str]:
    """The command line that asks for the same."""
    until = ",".join(f"{name}:{100 * share!r}%" for name, share in settings.until.items())
    own = {
        "replications": settings.replications,
        "workers": settings.workers,
        "most": settings.most,
        "analysis": settings.analysis,
        **({"until": until} if until else {}),
    }
    return [*lines, *(f"{name}={value}" for name, value in own.items())]


class _Experiment:
    """Plays replications until there are enough."""

    def __init__(
        self,
        settings: ReplicateSettings,
        run: RunSettings,
        overrides: Sequence[str],
        *,
        shown: bool,
        resume: Path | None = None,
    ) -> None:
        self._settings = settings
        self._overrides = overrides
        self._seed = run.seed
        self._shown = shown
        last = MOST_SEED + 1 - (settings.most if settings.until else settings.replications)
        require("seed", run.seed, run.seed <= last, f"{last} at most, so that each run has one of its own")
        asked = arguments_of(settings, overrides)
        if resume is None:
            self._folder = Folder(run.report.folder, f"replicate_{run.scenario.name}")
            self._folder.begin(asked)
        else:
            self._folder = Folder.resumed(resume, asked)
        self._played: list[Played] = []
        self._heard: list[Played] = []
        self._figures: list[Figures] = []
        self._warm_up: float | None = None

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return self._folder.path

    def play(self) -> Replications:
        settings, wanted = self._settings, self._settings.replications
        total = None if settings.until else wanted
        try:
            with (
                self._folder.unless_refused(),
                progress(total, self._heard.append, shown=self._shown) as told,
            ):
                while True:
                    self._played += play_all(self._jobs(wanted), settings.workers, told, complain)
                    refuse_if_none_could(self._played)
                    count, stopped_by = self._enough()
                    if count:
                        break
                    wanted = min(settings.most, wanted + settings.workers)
        except KeyboardInterrupt:
            self._played = sorted(self._heard, key=lambda each: each.number)
            self._write(self._played, {}, "interrupted")
            raise
        return self._ended(count, stopped_by)

    def _jobs(self, wanted: int) -> list[Job]:
        """Those that are missing."""
        runs = self._folder.path / "runs"
        return [
            Job(
                number,
                (*self._overrides, f"seed={self._seed + number}"),
                runs / f"seed-{self._seed + number}",
            )
            for number in range(len(self._played), wanted)
        ]

    def _enough(self) -> tuple[int, str]:
        """How many of the runs so far are enough, in their order, and what said so; 0 when more are needed."""
        settings = self._settings
        for number in range(len(self._figures), len(self._played)):
            self._figures.append(self._figures_of(self._played[number]))
        if not settings.until:
            return settings.replications, f"{settings.replications} replications, as asked"
        if are_copies([each.digest for each in self._played]):
            return settings.replications, SAME
        if any(each.again for each in self._played):
            return len(self._played), "want of memory or disk"
        for count in range(settings.replications, len(self._played) + 1):
            if self._is_sure(count):
                return count, "the half-widths that were asked for"
        if len(self._played) >= settings.most:
            return (
                settings.most,
                f"most={settings.most}: the half-widths that were asked for were not reached",
            )
        return 0, ""

    def _is_sure(self, count: int) -> bool:
        found = intervals(self._figures[:count])
        for name, share in self._settings.until.items():
            one = found.get(name)
            if one is None or one.half_width is None or one.half_width > share * abs(one.mean):
                return False
        return True

    def _figures_of(self, played: Played) -> Figures:
        if self._settings.analysis != "steady" or played.error is not None:
            return played.summary
        if self._warm_up is None:
            first = self._played[: self._settings.replications]
            series = [_e2e_by_arrival(open_run(each.folder)) for each in first if each.error is None]
            if not series or min(map(len, series)) == 0:
                raise TooShort("run too short: a run has no completed request")
            self._warm_up = warm_up(series)
        return _after(open_run(played.folder), self._warm_up)

    def _ended(self, count: int, stopped_by: str) -> Replications:
        for extra in self._played[count:]:  # played beyond need by workers that had nothing else to do
            shutil.rmtree(extra.folder, ignore_errors=True)
        played, figures = self._played[:count], self._figures[:count]
        found = intervals(without_copies(figures, [each.digest for each in played]))
        runs = self._write(played, found, stopped_by, figures)
        missing = [each for each in played if each.again]
        return Replications(
            self.path if missing else self._folder.publish(),
            self._settings.analysis,
            self._warm_up or 0.0,
            stopped_by,
            runs,
            found,
            worst_exit_code(played),
            missing,
        )

    def _write(
        self,
        played: Sequence[Played],
        found: Mapping[str, Interval],
        stopped_by: str,
        figures: Sequence[Figures] | None = None,
    ) -> pd.DataFrame:
        table = table_of(played)
        if figures is not None and self._warm_up is not None:
            table = pd.concat([table.iloc[:, :5], pd.DataFrame(list(figures))], axis=1)
        self._folder.write_table("replications.csv", table)
        apart = rows_without_copies(table)
        told = {
            "analysis": self._settings.analysis,
            "warm_up_share": self._warm_up or 0.0,
            "replications": len(played),
            "stopped_by": stopped_by,
            "coverage": 0.95,
            "intervals": {
                name: {"mean": one.mean, "half_width": one.half_width, "n": _count(apart, name)}
                for name, one in found.items()
            },
        }
        self._folder.write_json("intervals.json", told)
        return table


def intervals(figures: Sequence[Figures]) -> dict[str, Interval]:
    """The interval of each figure that every run has, over the runs."""
    named = [
        name for name, value in (figures[0] if figures else {}).items() if isinstance(value, int | float)
    ]
    found = {}
    for name in named:
        values = [each[name] for each in figures if each.get(name) is not None]
        if len(values) == len(figures):
            found[name] = interval([float(value) for value in values])
    return found


def _count(table: pd.DataFrame, name: str) -> int:
    return int(table[name].notna().sum()) if name in table else 0


def _e2e_by_arrival(run: Run) -> metrics.Floats:
    done = run.whole.completed.sort_values(["arrival_ns", "request_id"])
    return metrics.e2e_s(done)


def _after(run: Run, share: float) -> Figures:
    """A run's figures without the requests that arrived first."""
    ordered = run.requests.sort_values(["arrival_ns", "request_id"])
    left = ordered.iloc[int(share * len(ordered)) :]
    rest = Run(run.path, run.config, run.manifest, left, run.timeseries, run.decisions, facts=run.facts)
    return rest.summary


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    if not given or {"--help", "-h"} & set(given):
        out.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 0 if given else 2
    experiment = None
    try:
        resume, asked = resumed(given)
        own, lines = own_settings(asked, OWN)
        experiment = _Experiment(options(own), read(lines), lines, shown=True, resume=resume)
        found = experiment.play()
    except BadSettings as error:
        complain(error)
        return 2
    except TooShort as error:
        complain(error)
        return 3
    except KeyboardInterrupt:
        complain("interrupted; the runs that were whole are kept")
        if experiment is not None:
            complain(f"go on with: python -m sim.replicate resume={experiment.path}")
        return 130
    except OSError as error:
        if experiment is None:
            raise
        complain(
            f"nothing more can be written to {experiment.path}: {error.strerror}; "
            f"once it can, go on with: python -m sim.replicate resume={experiment.path}"
        )
        return 1
    show(found, out)
    if found.missing:
        complain(
            f"{len(found.missing)} of {len(found.runs)} runs could not be played for want of memory or disk; "
            f"go on with: python -m sim.replicate resume={found.path}"
        )
    return found.exit_code


def options(own: Mapping[str, str]) -> ReplicateSettings:
    """The settings of the command line. Raises BadSettings."""
    given: dict[str, Any] = {
        name: whole_number(name, own[name]) for name in ("replications", "workers", "most") if name in own
    }
    if "analysis" in own:
        given["analysis"] = own["analysis"]
    if "until" in own:
        given["until"] = each_once("until", own["until"], map(_goal, own["until"].split(",")))
    return ReplicateSettings(**given)


def _goal(text: str) -> tuple[str, float]:
    name, _, share = text.partition(":")
    try:
        return name, float(share.removesuffix("%")) / 100
    except ValueError:
        raise BadSettings(f"until is {text!r}, but must be FIGURE:SHARE, as in mean_ttft_s:2%") from None


def show(found: Replications, out: Console) -> None:
    """The table of intervals, what stopped it, and where the rest is."""
    shown = Table(box=SIMPLE_HEAD, title=f"{len(found.runs)} replications, 95 % intervals by Student's t")
    for head in ("figure", "mean", "+-", "relative", "least", "most"):
        shown.add_column(head, justify="left" if head == "figure" else "right")
    for name in MAIN:
        one = found.intervals.get(name)
        if one is not None:
            half, relative = "", ""
            if one.half_width is not None:
                half = f"{one.half_width:.4g}"
                relative = f"{100 * one.half_width / abs(one.mean):.2g} %" if one.mean else ""
            ends = (found.runs[name].min(), found.runs[name].max())
            shown.add_row(name, f"{one.mean:.4g}", half, relative, *map("{:.4g}".format, ends))
    out.print(shown)
    if are_copies(found.runs["digest"].tolist()):
        out.print(SAME, highlight=False, soft_wrap=True)
    start = (
        f"the first {found.warm_up:.0%} of each run left out" if found.analysis == "steady" else "whole runs"
    )
    verdicts = found.runs["verdict"].value_counts().to_dict()
    out.print(f"analysis  {found.analysis}: {start}", highlight=False)
    out.print(f"stopped by  {found.stopped_by}", highlight=False)
    out.print(
        "verdicts  " + ", ".join(f"{name} {count}" for name, count in sorted(verdicts.items())),
        highlight=False,
    )
    for row in found.runs[found.runs["error"] != ""].itertuples():
        out.print(f"seed {row.seed}: {row.error}", markup=False, highlight=False)
    out.print(f"runs  {found.path}", highlight=False, soft_wrap=True)


callable_as(__name__, replicate)

if __name__ == "__main__":
    begin()
    sys.exit(main())

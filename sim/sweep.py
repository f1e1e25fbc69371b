"""`python -m sim.sweep scenario=steady strategy=round_robin,least_loaded seed=1..5`: every combination, side by side.

0: every run passed. 1: one failed. 2: the settings are no good, and nothing ran. 3: a check could not be decided.
130: interrupted; the runs that were whole are in a folder that is still called `.partial`, and `resume=FOLDER` goes
on with it. `python -m sim -m` plays the same by a launcher of Hydra's (`sim/multirun.py`).
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console

from engine.errors import BadSettings
from sim.apart import leave_if_imported
from sim.callables import callable_as
from sim.compare import Row, show_rows
from sim.copies import SAME, are_copies
from sim.early import begin
from sim.experiments import (
    Folder,
    complain,
    noted,
    own_settings,
    progress,
    refuse_if_none_could,
    resumed,
    table_of,
    whole_number,
)
from sim.plan import Combination, Plan, chosen, label, planned
from sim.ranking import Ranked, check_figure, comparisons, effects, rank_table, ranked, show, told
from sim.workers import Job, Note, Played, Told, kept, play_all, sweep_up, worst_exit_code

USAGE = """usage: python -m sim.sweep scenario=NAME SETTING=A,B [SETTING=VALUE ...] [seed=1..5] [what is below]

A setting with values between commas is swept, and so are range(1,11), choice(a,b) and glob(*); seed=1..5 is 1 to 5.
Each combination is a run on each seed, and a row of index.csv.

  rank=mean_ttft_s            the figure by which combinations are ranked (ranking.csv), and of the heat map
  baseline=SETTING=VALUE,...  what the others are compared with; what is not named has its first value
  pareto=mean_ttft_s,mean_tpot_s  the two figures of pareto.png
  heat=SETTING,SETTING        the two settings of heat.png; the first two that are swept
  folder=FOLDER               where all goes; asked for again it plays what is missing there
  workers=(cores)             processes that play them; the results are the same whatever their number
  resume=FOLDER               alone: go on with what was interrupted; its runs are not played again

exit codes: 0 all runs passed, 1 one failed, 2 bad settings, 3 undecided, 130 interrupted"""
OWN = ("rank", "baseline", "pareto", "heat", "folder", "workers")
WIDTH = 180  # of a table that is not shown on a terminal
PAIR = 2

Launch = Callable[[Sequence[Job], Told, Note], Sequence[Played]]
"""Play jobs, in whatever processes, and say what became of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the runs are looked at. Raises BadSettings."""

    rank: str = "mean_ttft_s"
    baseline: str = ""
    pareto: str = "mean_ttft_s,mean_tpot_s"
    heat: str = ""

    def __post_init__(self) -> None:
        check_figure("rank", self.rank)
        figures = self.pareto.split(",")
        if len(set(figures)) != PAIR or len(figures) != PAIR:
            raise BadSettings(
                f"pareto is {self.pareto!r}, but must be two figures, as in mean_ttft_s,mean_tpot_s"
            )
        for figure in figures:
            check_figure("pareto", figure)

    @property
    def axes(self) -> tuple[str, str]:
        x, y = self.pareto.split(",")
        return x, y

    def sides(self, swept: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
        """The two settings of the heat map; None where fewer are swept. Raises BadSettings for others."""
        names = self.heat.split(",") if self.heat else list(swept)[:PAIR]
        if self.heat and (len(set(names)) != PAIR or len(names) != PAIR or not set(names) <= set(swept)):
            known = ", ".join(swept) or "none is"
            raise BadSettings(
                f"heat is {self.heat!r}, but must be two of the settings that are swept: {known}"
            )
        return (names[0], names[1]) if len(names) == PAIR else None


@dataclass(slots=True)
class Sweep:
    """All combinations that were played, and what they say."""

    path: Path
    swept: dict[str, list[str]]
    """Without the seed."""
    index: pd.DataFrame
    """One row a run: the swept settings, seed, verdict, digest, figures."""
    figure: str
    """That ranks."""
    baseline: Combination
    ranking: list[Ranked]
    comparisons: dict[str, list[Row]]
    """By combination: how it differs from the baseline."""
    effects: dict[str, list[Row]]
    """By setting and value: what it changes, averaged over all else; of two swept settings or more."""
    exit_code: int
    missing: list[Played] = field(default_factory=list)
    """Runs that the machine could not play; the folder is still `.partial`."""


def sweep(
    overrides: Sequence[str],
    *,
    workers: int | None = None,
    folder: Path | str | None = None,
    shown: bool = False,
    **reading: str,
) -> Sweep:
    """Play every combination of the values between commas. Raises BadSettings before anything runs.

    `reading` are rank, baseline, pareto and heat, as on the command line. A `folder` that holds the same sweep, or a
    part of it, is gone on with.
    """
    leave_if_imported()
    own = {**reading, **({} if folder is None else {"folder": str(folder)})}
    many = workers or os.cpu_count() or 1
    refuse_launchers(overrides)
    return Sweeping(overrides, own, lambda *given: play_all(given[0], many, *given[1:]), shown=shown).play()


def refuse_launchers(lines: Sequence[str]) -> None:
    """Raise BadSettings for what only `python -m sim -m` can honour."""
    for line in lines:
        if line.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise BadSettings(
                f"{line!r} is for python -m sim -m, which plays a sweep by a launcher of Hydra's"
            )


class Sweeping:
    """A sweep from its command line to its folder, whoever plays the runs."""

    def __init__(
        self,
        lines: Sequence[str],
        own: Mapping[str, str],
        launch: Launch,
        *,
        check: Callable[[Sequence[str]], None] = lambda _lines: None,
        command: str = "python -m sim.sweep",
        noted_besides: Sequence[str] = (),
        resume: Path | None = None,
        shown: bool = False,
    ) -> None:
        """Compose and read everything. Raises BadSettings; only then there is a folder.

        `check` looks at the lines of a run, too, before there is a folder. `noted_besides` are lines of the command
        line that are not the runs', for `resume` to find.
        """
        self.plan: Plan = planned(lines)
        self._reading = Reading(**{name: value for name, value in own.items() if name in Reading.__slots__})
        self._baseline = chosen(self._reading.baseline, self.plan.swept)
        self._sides = self._reading.sides(self.plan.swept)
        settings = self.plan.read()
        check(self.plan.lines(self.plan.combinations[0]))
        self._launch, self._command, self._shown = launch, command, shown
        options = [f"{name}={value}" for name, value in own.items()]
        asked = [*lines, *noted_besides, *options]
        self._folder = self._found(own.get("folder"), asked, resume) or Folder(
            settings[0].report.folder, f"sweep_{settings[0].scenario.name}"
        )
        self._folder.begin(asked)
        self.jobs = self.plan.jobs(self._folder.path.absolute() / "runs")

    @property
    def path(self) -> Path:
        return self._folder.path

    def play(self) -> Sweep:
        """Play what is missing, and say what all of it says."""
        heard: dict[int, Played] = {job.number: one for job in self.jobs if (one := kept(job)) is not None}
        missing = [job for job in self.jobs if job.number not in heard]
        if self._shown and heard:
            complain(f"{len(heard)} of {len(self.jobs)} runs were played before")

        def told(played: Played) -> None:
            heard[played.number] = played

        try:
            with (
                self._folder.unless_refused(),
                progress(len(missing), told, shown=self._shown) as passed_on,
            ):
                for one in self._launch(missing, passed_on, complain) if missing else ():
                    heard[one.number] = one
                played = [heard[job.number] for job in self.jobs]
                refuse_if_none_could(played)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        except OSError as error:
            raise self._scarce(error) from error
        try:
            return self._said(played)
        except OSError as error:
            raise self._scarce(error) from error

    def _found(self, name: str | None, asked: Sequence[str], resume: Path | None) -> Folder | None:
        """The folder that is gone on with, or that has the name which is asked for. Raises BadSettings."""
        if resume is not None:
            return Folder.resumed(resume, asked)
        if name is None:
            return None
        if not name:
            raise BadSettings("folder is '', but must be the path of a folder")
        path = Path(name.removesuffix(".partial"))
        partial = path.with_name(f"{path.name}.partial")
        there = path if path.exists() else partial
        if not there.exists():
            return Folder.named(path)
        before = noted(there) if there.is_dir() else []
        if runs_of(before) != runs_of(asked):
            raise BadSettings(
                f"folder is {name!r}, but {there} holds something else: {' '.join(before) or 'no sweep'}"
            )
        if there is path:
            path.rename(partial)
        return Folder.resumed(partial, asked)

    def _said(self, played: Sequence[Played]) -> Sweep:
        folder, reading, plan = self._folder, self._reading, self.plan
        sweep_up(folder.path / "runs")
        index = table_of(played, plan.labels())
        folder.write_table("index.csv", index)
        found = ranked(index, plan.combinations, self._baseline, reading.rank)
        compared = comparisons(found, self._baseline)
        changed = effects(index, plan.swept, self._baseline)
        folder.write_table("ranking.csv", rank_table(found, reading.rank))
        folder.write_table("comparisons.csv", told(compared, "combination"))
        if changed:
            folder.write_table("effects.csv", told(changed, "value"))
        self._draw(index, found)
        missing = [each for each in played if each.again]
        path = folder.path if missing else folder.publish(keep_command=True)
        code = worst_exit_code(played)
        return Sweep(
            path, plan.swept, index, reading.rank, self._baseline, found, compared, changed, code, missing
        )

    def _draw(self, index: pd.DataFrame, found: Sequence[Ranked]) -> None:
        from sim import sweep_plots  # noqa: PLC0415  matplotlib takes most of a second to import

        x, y = self._reading.axes
        whole = index[index["error"] == ""]
        rests_on = sweep_plots.rests_on(sorted(set(whole["seed"])), len(whole))
        points = [
            sweep_plots.Point(each.name, one, other)
            for each in found
            if (one := each.mean(x)) is not None and (other := each.mean(y)) is not None
        ]
        if points:
            sweep_plots.save(sweep_plots.pareto(points, x, y, rests_on), self.path / "pareto.png")
        if (
            self._sides is not None
            and self._reading.rank in whole
            and whole[self._reading.rank].notna().any()
        ):
            picture = sweep_plots.heat_map(index, self._sides, self.plan.swept, self._reading.rank, rests_on)
            sweep_plots.save(picture, self.path / "heat.png")

    def _interrupted(self) -> None:
        """Keep what was whole, as far as the disk allows."""
        whole = [one for job in self.jobs if (one := kept(job)) is not None]
        try:
            self._folder.write_table("index.csv", table_of(whole, self.plan.labels()))
        except OSError as error:
            complain(f"index.csv could not be written: {error.strerror}")
        if self._shown:
            complain(f"go on with: {self.go_on}")

    def _scarce(self, error: OSError) -> "Unwritable":
        return Unwritable(
            f"nothing more can be written to {self.path}: {error.strerror}; once it can, go on with: {self.go_on}"
        )

    @property
    def go_on(self) -> str:
        """The command that goes on with it."""
        return f"{self._command} resume={self.path}"


class Unwritable(Exception):
    """The disk is full, or the like: what was whole is kept."""


def runs_of(arguments: Sequence[str]) -> list[str]:
    """What a command line asks to be played, in whatever way it is looked at and launched."""
    _, lines = own_settings(arguments, OWN)
    return sorted(line for line in lines if not line.startswith(("hydra.", "hydra/")))


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or console_of(WIDTH)
    if not given or {"--help", "-h"} & set(given):
        out.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 0 if given else 2
    return carried_out(lambda: _asked(given), out)


def _asked(given: Sequence[str]) -> Sweeping:
    resume, asked = resumed(given)
    own, lines = own_settings(asked, OWN)
    refuse_launchers(lines)
    workers = whole_number("workers", own["workers"]) if "workers" in own else os.cpu_count() or 1
    return Sweeping(
        lines, own, lambda *given: play_all(given[0], workers, *given[1:]), resume=resume, shown=True
    )


def console_of(width: int) -> Console:
    """Where tables are shown; elsewhere than on a terminal they are as wide as they need."""
    return Console(width=None if sys.stdout.isatty() else width)


def carried_out(make: Callable[[], Sweeping], out: Console) -> int:
    """Make a sweep, play and show it; the exit code."""
    try:
        sweeping = make()
        found = sweeping.play()
    except BadSettings as error:
        complain(error)
        return 2
    except Unwritable as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the runs that were whole are kept")
        return 130
    show_sweep(found, out)
    if found.missing:
        complain(
            f"{len(found.missing)} of {len(found.index)} runs could not be played for want of memory or disk; "
            f"go on with: {sweeping.go_on}"
        )
    return found.exit_code


def show_sweep(found: Sweep, out: Console) -> None:
    """The ranked table, the best beside the baseline, what each setting does, and where the rest is."""
    show(found.ranking, found.baseline, found.figure, out)
    best = found.ranking[0]
    against = f"baseline  {label(found.baseline)}"
    if best.name in found.comparisons:
        show_rows(f"{best.name} against {label(found.baseline)}", found.comparisons[best.name], out)
    for value, rows in found.effects.items():
        row = next((each for each in rows if each.figure == found.figure), None)
        if row is not None and row.difference.half_width is not None:
            out.print(
                f"effect  {value}: {row.figure} {row.difference.mean:+.3g} +- {row.difference.half_width:.2g} "
                f"over all else, {row.verdict}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    out.print(against, highlight=False, markup=False, soft_wrap=True)
    copied = [each for each in found.ranking if are_copies(each.runs["digest"].tolist())]
    if copied:
        of = "" if len(copied) == len(found.ranking) else f"{', '.join(each.name for each in copied)}: "
        out.print(f"seeds  {of}{SAME}", highlight=False, markup=False, soft_wrap=True)
    failed = found.index[found.index["error"] != ""]
    for error, runs in failed.groupby("error", sort=False)["folder"]:
        which = f"run {runs.iloc[0]}" if len(runs) == 1 else f"{len(runs)} runs, the first {runs.iloc[0]}"
        out.print(f"{which}: {error}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"runs  {found.path}", highlight=False, soft_wrap=True)


callable_as(__name__, sweep)

if __name__ == "__main__":
    begin()
    sys.exit(main())

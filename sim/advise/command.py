"""The command line of the advice, its runs and its folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from engine.errors import BadSettings
from sim.advise.evidence import Outcome, outcome_of
from sim.advise.search import Search
from sim.advise.settings import COUNTS, NUMBERS, AdviceSettings, settings_of
from sim.advise.space import Space, space_of
from sim.advise.telling import Advice
from sim.config import RunSettings
from sim.experiments import Folder, complain, progress, resumed
from sim.intervals import Interval
from sim.metrics import LEAST_SAMPLES
from sim.sweep import Unwritable, console_of, refuse_launchers
from sim.traffic import draw
from sim.workers import Crew, Job, Played, Told

USAGE = """usage: python -m sim.advise scenario=NAME [SETTING=A,B ...] ttft_s=SECONDS [what is below]

Searches what the line leaves open: the settings with several values; and strategy, allocation, eviction and the sizes
of the tiers where it says nothing of them. The cheapest that meets the objective is verified on seeds that the search
has not used.

  ttft_s, tpot_s=         the limits, seconds; one of them or both
  percentile=99           so many per cent of all requests are within each limit; refused ones are not
  attainment=SHARE        instead: this share of all requests is within both limits together
  budget=100              simulations at most, those that verify included
  seeds=3                 on which a candidate is played, from the setting `seed` on
  verify=5                fresh seeds on which the choice is verified; twice as many where it is close
  price.accelerator=2.0   an hour of what a replica runs on
  price.HARDWARE=         the same of one choice of hardware, as in hardware=l4,h100 price.l4=0.8 price.h100=3
  price.TIER=             an hour of a GiB: gpu 0.02, ram 0.005, ssd 0.0002, network 0.0004, cloud 0.00005;
                          as long as you give none these are assumptions
  workers=(cores)         processes; the answer is the same whatever their number
  resume=FOLDER           alone: go on with what was interrupted

exit codes: 0 found, 1 infeasible, 2 bad settings, 3 undecided, 130 interrupted"""
WIDTH = 170  # of a table that is not shown on a terminal


class Advising:
    """A search from its command line to its folder."""

    def __init__(
        self,
        lines: Sequence[str],
        settings: AdviceSettings,
        asked: Sequence[str],
        *,
        resume: Path | None = None,
        shown: bool = False,
    ) -> None:
        """Compose and price all candidates. Raises BadSettings; only then there is a folder."""
        self.settings = settings
        self.space: Space = space_of(lines, settings.prices)
        self._shown = shown
        self._told: Told = lambda _played: None
        self._crew = Crew(1)
        self._search = Search(self.space, settings, self._play)
        self._search.check()
        check_requests(settings, self.space.base)
        base = self.space.base
        if resume is None:
            self._folder = Folder(base.report.folder, f"advise_{base.scenario.name}")
            self._folder.begin(asked)
        else:
            self._folder = Folder.resumed(resume, asked)

    @property
    def path(self) -> Path:
        return self._folder.path

    def advise(self) -> Advice:
        """Search, verify, and write what was found."""
        with (
            Crew(self.settings.workers) as self._crew,
            progress(self.settings.budget, lambda _played: None, shown=self._shown) as self._told,
        ):
            found = self._search.run()
        advice = Advice(self._search, found)
        self._folder.write_json("advice.json", advice.told())
        self._folder.write_text("advice.md", advice.markdown())
        self._folder.write_table("candidates.csv", advice.table())
        self._draw(advice)
        self._folder.publish()
        return advice

    def _play(self, pairs: Sequence[tuple[int, int]]) -> list[Outcome]:
        runs = self.path.absolute() / "runs"
        jobs = [
            Job(place, self.space.lines(number), runs / f"{number:06}-{seed}", seed)
            for place, (number, seed) in enumerate(pairs)
        ]
        return [self._outcome(each) for each in self._crew.play(jobs, self._told, complain)]

    def _outcome(self, played: Played) -> Outcome:
        if played.again:
            raise Unwritable(f"a run could not be played ({played.error}); go on with: {self.go_on}")
        return outcome_of(played, self._search.goals)

    def _draw(self, advice: Advice) -> None:
        from sim import sweep_plots  # noqa: PLC0415  matplotlib takes most of a second to import

        points = [
            sweep_plots.Point(name, Interval(cost, None), value) for name, cost, value in advice.points()
        ]
        if points:
            seeds, runs = (
                self._search.seeds,
                sum(len(one.outcomes) for one in self._search.candidates.values()),
            )
            figure = f"p{100 * advice.goals[0].share:.4g}_{advice.figure}_s"
            rests_on = sweep_plots.rests_on(seeds, runs)
            sweep_plots.save(
                sweep_plots.pareto(points, "cost_per_hour", figure, rests_on), self.path / "pareto.png"
            )

    @property
    def go_on(self) -> str:
        """The command that goes on with it."""
        return f"python -m sim.advise resume={self.path}"


def check_requests(settings: AdviceSettings, base: RunSettings) -> None:
    """Raise BadSettings for a percentile that would rest on one or two requests."""
    if settings.attainment is not None:
        return
    percentile = 100 * settings.goals[0].share
    least = max((samples for q, samples in LEAST_SAMPLES.items() if percentile >= q), default=1)
    count = len(draw(base.workload, base.seed, [model.name for model in base.engine.fleet.models]))
    if count < least:
        raise BadSettings(
            f"percentile is {percentile:g}, which needs {least} requests a run, but the workload has {count}: "
            f"give it more, as in workload.requests={least}, or ask for a lower one"
        )


def advise(overrides: Sequence[str], **options: float) -> Advice:
    """What meets an objective at least cost: `advise(["scenario=steady", "tiers.ram.gib=1,2"], ttft_s=0.5)`.

    `options` are those of AdviceSettings. Raises BadSettings before anything runs.
    """
    settings = AdviceSettings(**options)  # type: ignore[arg-type]
    asked = [*overrides, *(f"{name}={value}" for name, value in options.items() if name != "prices")]
    return Advising(overrides, settings, asked).advise()


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or console_of(WIDTH)
    if not given or {"--help", "-h"} & set(given):
        out.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 0 if given else 2
    advising = None
    try:
        advising = _asked(given)
        advice = advising.advise()
    except BadSettings as error:
        complain(error)
        return 2
    except Unwritable as error:
        complain(error)
        return 1
    except OSError as error:
        where = "" if advising is None else f"; once there is room, go on with: {advising.go_on}"
        complain(f"{error.strerror or error}{where}")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the runs that were whole are kept")
        if advising is not None:
            complain(f"go on with: {advising.go_on}")
        return 130
    advice.show(out)
    out.print(f"folder  {advising.path}", highlight=False, soft_wrap=True)
    return advice.exit_code


def _asked(given: Sequence[str]) -> Advising:
    resume, asked = resumed(given)
    own, lines = {}, []
    for line in asked:
        name, equals, value = line.partition("=")
        if equals and (name in (*NUMBERS, *COUNTS) or name.startswith("price.")):
            own[name] = value
        else:
            lines.append(line)
    refuse_launchers(lines)
    return Advising(lines, settings_of(own), asked, resume=resume, shown=True)

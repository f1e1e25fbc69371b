"""`python -m sim.fidelity rank`: strategies and allocations against each other, live and simulated.

A round is a calibration run, every configuration once on the same requests, and a calibration run again; then each
real run is simulated from these two. The next round has other requests and begins with another configuration, so
that a machine that slows down favours nobody.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table

from engine.execution import executors
from engine.settings import above, require
from sim.config import RunSettings, choices, typed
from sim.fidelity import report
from sim.fidelity.bench import (
    Play,
    System,
    Workbench,
    calibration_s,
    schedule_delay,
    seeds_of,
    simulated_round,
    voids,
)
from sim.fidelity.cases import RANKED, run_settings, traffic
from sim.fidelity.compare import FAIL, INCONCLUSIVE, LATENCIES, PASS, done
from sim.fidelity.folder import ComparisonFolder, machine, write_json
from sim.fidelity.live import Machine
from sim.fidelity.ranking import JUDGED, LEAST_TAU, MOST_REGRET, Ranking, as_json, ranking
from sim.fidelity.settings import Protocol, given_for
from sim.plots import agreement, png
from sim.traffic import Trace

SCHEMA_VERSION = 1
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}
INTERRUPTED = 130
LEAST_REQUESTS = 40  # of a run: its mean is all that is asked of it
RUN_OVERHEAD_S = 1.5
CALIBRATIONS = 2  # a round
STANDING_HEADS = ("configuration", "real, ms", "place", "simulated, ms", "place", "error")
ORDERS = {1: "same", 0: "none", -1: "OTHER"}
PAIR_HEADS = ("separated in reality", "real", "simulated", "p", "order")


@dataclass(slots=True, kw_only=True)
class RankingSettings(Protocol):
    """Each of `strategies` with each of `allocations`, at a share `load` of the capacity of the first of them."""

    strategies: list[str] = field(
        default_factory=lambda: ["random", "least_loaded", "latency_based", "cache_aware"]
    )
    allocations: list[str] = field(default_factory=lambda: ["shared", "fair"])
    load: float = RANKED.load

    def __post_init__(self) -> None:
        Protocol.__post_init__(self)
        for key, group in (("strategies", "strategy"), ("allocations", "allocation")):
            names = getattr(self, key)
            known = choices(group)
            require(key, names, len(names) > 0, f"some of {', '.join(known)}")
            for name in names:
                require(key, name, name in known, f"some of {', '.join(known)}")
            require(key, names, len(set(names)) == len(names), "each of them once")
        require(
            "strategies and allocations",
            f"{len(self.strategies)} and {len(self.allocations)}",
            len(self.configurations) > 1,
            "at least two configurations together",
        )
        above("load", self.load, 0)

    @property
    def configurations(self) -> list[str]:
        """Their names, in the order of the settings."""
        return [f"{each} {how}" for each, how in product(self.strategies, self.allocations)]

    def lines(self, configuration: str) -> list[str]:
        """The overrides that make one."""
        strategy, allocation = configuration.split()
        return [*self.overrides, f"strategy={strategy}", f"allocation={allocation}"]


def read(arguments: Sequence[str]) -> RankingSettings:
    """The settings of a command line; what is not one of ours is an override of the run's. Raises BadSettings."""
    return typed(RankingSettings, given_for(RankingSettings, arguments), "fidelity")


@dataclass(slots=True, kw_only=True)
class RankedRound:
    """The mean latencies of a round, in s: by world, metric and configuration."""

    number: int
    requests: int
    rate: float
    means: dict[str, dict[str, dict[str, float]]]
    schedule_delay: float  # the largest p99, as a share of the mean latency
    real_s: float
    simulated_s: float


class Contest(Workbench):
    """Where configurations meet the same requests."""

    def __init__(self, settings: RankingSettings, *given: Any) -> None:
        super().__init__(settings, *given)
        self._settings = settings

    def rounds(self, numbers: Sequence[int]) -> Iterator[RankedRound]:
        """One after the other. Raises BadSettings."""
        system = self.measured(RANKED)
        self.systems[RANKED.system] = system
        for number in numbers:
            yield self._round(number, system)

    def count(self, rate: float) -> int:
        """How many requests each run has: its part of the time, less what goes around it."""
        settings = self._settings
        if settings.requests is not None:
            return settings.requests
        runs = len(settings.configurations)
        round_s, capacity = settings.minutes * 60 / settings.repeats, rate / settings.load
        if settings.calibration_requests is None:  # they take as long as a run each
            runs += CALIBRATIONS
        else:
            round_s -= CALIBRATIONS * calibration_s(settings.calibration_requests, capacity)
        return max(LEAST_REQUESTS, round((round_s / runs - RUN_OVERHEAD_S) * rate))

    def _round(self, number: int, system: System) -> RankedRound:
        settings, rate = self._settings, self._settings.load * system.capacity
        count = self.count(rate)
        names = turned(settings.configurations, number)
        runs = {name: ranked_run(settings, name, count) for name in names}
        traces = {name: drawn(run, count, rate, number) for name, run in runs.items()}
        around = [self.calibration(RANKED, system, CALIBRATIONS * number, count / rate)]
        real = {}
        for place, name in enumerate(names):
            self.told(f"round {number + 1} of {settings.repeats}, {place + 1} of {len(names)}: {name}")
            real[name] = self.live(runs[name], traces[name], [])
        around.append(self.calibration(RANKED, system, CALIBRATIONS * number + 1, count / rate))
        self.told(f"round {number + 1} of {settings.repeats}: simulations")
        means: dict[str, dict[str, dict[str, float]]] = {
            side: {metric: {} for metric in LATENCIES} for side in ("real", "simulated")
        }
        real_s = simulated_s = 0.0
        for name, live in real.items():
            run, seeds = runs[name], seeds_of(runs[name].seed, number, settings.draws)
            play = Play(run.engine, traces[name], [], system.models, seeds)
            each = simulated_round(play, live, around)
            for side, seen in (("real", [live.seen]), ("simulated", [draw.seen for draw in each.simulated])):
                for metric, mean_s in means_of(pd.concat(seen)).items():
                    means[side][metric][name] = mean_s
            real_s += live.wall_s
            simulated_s += float(np.mean([draw.wall_s for draw in each.simulated]))
        return RankedRound(
            number=number,
            requests=count,
            rate=rate,
            means=means,
            schedule_delay=max(schedule_delay(live) for live in real.values()),
            real_s=real_s,
            simulated_s=simulated_s,
        )


def ranked_run(settings: RankingSettings, configuration: str, count: int) -> RunSettings:
    """The run of one configuration. Raises BadSettings."""
    return run_settings(RANKED, count, settings.lines(configuration))


def drawn(run: RunSettings, count: int, rate: float, number: int) -> Trace:
    """The requests of a round, the same for every configuration."""
    return traffic(RANKED, run, count, rate, run.seed + number)


def means_of(seen: pd.DataFrame) -> dict[str, float]:
    """The mean of each latency, in s. Raises BadSettings where nothing was completed."""
    rows = done(seen)
    require("requests", len(seen), len(rows) > 0, "so many that some are completed")
    return {metric: float(np.mean(latency(rows))) for metric, latency in LATENCIES.items()}


def turned(names: Sequence[str], number: int) -> list[str]:
    """The same, beginning with another one each time."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


class RankingFolder(ComparisonFolder):
    """Rounds are kept as they finish."""

    kind, parts = "ranking", "rounds"

    def finished(self) -> list[RankedRound]:
        """The rounds that are here already."""
        paths = sorted((self.path / self.parts).glob("*.json"))
        return [RankedRound(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def keep(self, each: RankedRound) -> None:
        """A round that is finished."""
        write_json(self.path / self.parts / f"{each.number:03}.json", asdict(each))

    def write(self, settings: RankingSettings, rounds: Sequence[RankedRound]) -> list[Ranking]:
        """The order of what there is, by each latency."""
        found = rankings(settings, rounds)
        whole = {
            "schema_version": SCHEMA_VERSION,
            "machine": machine(),
            "verdict": verdict_of(found, void(settings, rounds)),
            "voids": void(settings, rounds),
            "settings": asdict(settings),
            "rounds": [asdict(each) for each in rounds],
            "rankings": [as_json(each) for each in found],
        }
        write_json(self.path / "ranking.json", whole)
        (self.path / "report.md").write_text(markdown(settings, rounds, found), encoding="utf-8")
        if settings.plots:
            (self.path / "ranking.png").write_bytes(png(picture(rounds, found)))
        return found


def rankings(settings: RankingSettings, rounds: Sequence[RankedRound]) -> list[Ranking]:
    """The order by each latency."""

    def side(world: str, metric: str) -> dict[str, list[float]]:
        return {
            name: [each.means[world][metric][name] for each in rounds] for name in settings.configurations
        }

    return [ranking(metric, side("real", metric), side("simulated", metric)) for metric in LATENCIES]


def void(settings: RankingSettings, rounds: Sequence[RankedRound]) -> list[str]:
    """Why nothing of it counts; nothing where it does."""
    return voids(max(each.schedule_delay for each in rounds), settings.max_schedule_delay)


def verdict_of(found: Sequence[Ranking], voids: Sequence[str]) -> str:
    """Nothing, if runs are void; else the worst of those that are judged."""
    verdicts = [each.verdict for each in found if each.metric in JUDGED]
    if voids:
        return INCONCLUSIVE
    if FAIL in verdicts:
        return FAIL
    return INCONCLUSIVE if INCONCLUSIVE in verdicts else PASS


def standing_rows(made: Ranking) -> report.Rows:
    """The configurations, best first in reality."""
    return [
        (
            each.configuration,
            report.number(each.real_s, 1e3),
            f"{each.real_rank}",
            report.number(each.simulated_s, 1e3),
            f"{each.simulated_rank}",
            report.percent(each.error),
        )
        for each in made.standings
    ]


def pair_rows(made: Ranking) -> report.Rows:
    """The pairs that reality separates, those first on which the simulation disagrees."""
    return [
        (
            f"{each.second} over {each.first}",
            report.percent(each.real),
            report.percent(each.simulated),
            f"{each.p_value:.1g}",
            ORDERS[each.sign],
        )
        for each in sorted(made.pairs, key=lambda each: (each.sign, -abs(each.real)))
    ]


def headline(made: Ranking) -> str:
    """The verdict on one latency, in a line."""
    tau = "too few pairs for a tau" if made.tau is None else f"tau {made.tau:.2f} (at least {LEAST_TAU})"
    winner = " or ".join(made.winners)
    return (
        f"{made.verdict.upper()}  {made.metric}: {tau} over {len(made.pairs)} of {made.num_pairs} pairs that reality "
        f"separates; who takes the simulated winner, {winner}, pays {report.percent(made.regret)} (at most "
        f"{MOST_REGRET:.0%})"
    )


def basis(rounds: Sequence[RankedRound]) -> str:
    """What it rests on."""
    real_s, simulated_s = (sum(getattr(each, name) for each in rounds) for name in ("real_s", "simulated_s"))
    return (
        f"{len(rounds)} rounds of {rounds[0].requests:,} requests at {rounds[0].rate:.2f}/s; simulated "
        f"{real_s / simulated_s:.0f} times as fast as real"
    )


def markdown(settings: RankingSettings, rounds: Sequence[RankedRound], found: Sequence[Ranking]) -> str:
    """report.md, whole."""
    parts = ["# Does the simulation rank as reality does?", "", f"{basis(rounds)}.", ""]
    parts += [f"void: {why}" for why in void(settings, rounds)]
    for made in found:
        parts += [f"## {made.metric}: {made.verdict}", "", f"{headline(made)}.", ""]
        parts += [*report.grid(STANDING_HEADS, standing_rows(made)), ""]
        parts += [*report.grid(PAIR_HEADS, pair_rows(made)), ""] if made.pairs else []
    parts += ["```bash", report.command(settings, "rank"), "```", ""]
    return "\n".join(parts)


def picture(rounds: Sequence[RankedRound], found: Sequence[Ranking]) -> Any:
    """Each configuration in both worlds."""
    points = {
        made.metric: (
            1e3 * np.array([each.real_s for each in made.standings]),
            1e3 * np.array([each.simulated_s for each in made.standings]),
        )
        for made in found
    }
    return agreement(
        points, unit="ms", title="Each configuration, real and simulated", rests_on=basis(rounds)
    )


def main(arguments: Sequence[str], out: Console) -> int:
    """The command line after `rank`; the exit code. Raises BadSettings."""
    settings = read(arguments)
    executors.find(settings.simulated)
    if settings.profile is not None:
        is_there = Path(settings.profile).is_file()
        require("profile", settings.profile, is_there, "a file that python -m sim.profile has written")
    for name in settings.configurations:
        drawn(ranked_run(settings, name, 1), 1, 1.0, 0)
    folder = RankingFolder(settings)
    rounds = folder.finished()
    runs = f"{len(settings.configurations)} configurations, {settings.repeats} rounds"
    out.print(
        f"{runs}: about {settings.minutes:.0f} minutes" if settings.requests is None else runs,
        highlight=False,
    )
    try:
        is_whole = play(settings, folder, rounds, out)
    except BaseException:
        folder.drop_if_empty()
        raise
    if not rounds:
        folder.drop_if_empty()
        out.print("interrupted before the first round was finished: nothing is kept", highlight=False)
        return INTERRUPTED
    found = folder.write(settings, rounds)
    if is_whole:
        folder.publish()
    for made in found:
        out.print(table(made))
    last = [
        *map(headline, found),
        *(f"void: {why}" for why in void(settings, rounds)),
        f"report  {folder.path}",
    ]
    if not is_whole:
        last.append(f"go on with: {report.command(settings, 'rank')} resume={folder.path}")
    for line in last:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    return EXIT_CODES[verdict_of(found, void(settings, rounds))] if is_whole else INTERRUPTED


def play(settings: RankingSettings, folder: RankingFolder, rounds: list[RankedRound], out: Console) -> bool:
    """Add the rounds that are left; whether all of them could finish."""
    left = sorted(set(range(settings.repeats)) - {each.number for each in rounds})
    if not left:
        return True
    status = Status("", console=Console(stderr=True))
    try:
        with Machine() as both, status:
            contest = Contest(settings, both, folder.profiles, status.update, folder.capacities)
            for each in contest.rounds(left):
                folder.keep_capacities(contest.capacities)
                folder.keep(each)
                rounds.append(each)
                out.print(f"round {each.number + 1} of {settings.repeats} is kept", highlight=False)
    except KeyboardInterrupt:
        return False
    return True


def table(made: Ranking) -> Table:
    """The order, for the terminal."""
    found = Table(title=f"by mean {made.metric}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, head in enumerate(STANDING_HEADS):
        found.add_column(head, justify="right" if position else "left", no_wrap=True)
    for row in standing_rows(made):
        found.add_row(*row)
    return found

"""The protocol: capacity first, then each case live several times and simulated, then the comparison.

Every real run of a case stands between two calibration runs with other traffic, from which the simulation gets the
host's costs: what a machine does slowly or quickly for some seconds is in all three, and nothing that is compared is
looked at before it is compared.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.clock import NS_PER_S, to_ns
from engine.settings import EngineSettings
from sim.config import RunSettings
from sim.fidelity.calibrate import host_costs, residuals, turns_of
from sim.fidelity.cases import (
    CASES,
    MOST_CROWDED,
    SYSTEMS,
    Case,
    at_once,
    crowd_of,
    faults,
    run_settings,
    traffic,
    with_burst,
)
from sim.fidelity.compare import (
    FAIL,
    INCONCLUSIVE,
    LATENCIES,
    LOW_LOAD,
    PASS,
    Cell,
    Distance,
    Share,
    cells,
    distances,
    done,
    shares,
)
from sim.fidelity.device import HostCosts
from sim.fidelity.fitting import predictions
from sim.fidelity.live import LiveRun, Machine
from sim.fidelity.profiles import PROFILE, Models, cost_models
from sim.fidelity.server import LiveJob
from sim.fidelity.settings import FidelitySettings, Protocol
from sim.fidelity.simulated import SimulatedRun, simulate
from sim.fidelity.steplog import Step
from sim.fidelity.steps import fitted, models_of
from sim.fidelity.track import Track, standard_ns, track_of
from sim.traffic import Trace

CALIBRATION_LOAD = 0.6
CALIBRATION_SEED, CAPACITY_SEED = 1_000_003, 1_000_033  # added to the run's: traffic that is not compared
FULL_PART = 0.9  # of a burst: what is done while batches are full
LOAD_S, BURST_S = 5.0, 8.0  # about: to load and fit a model that is measured; a burst
RUN_OVERHEAD_S = 1.5  # to start an engine, to warm it up, to let go of it
LEAST_CALIBRATION = 90  # requests of a calibration run
LEAST_REQUESTS, LEAST_JUDGED = 20, 120  # of a run; without a hundred that are completed there is no p99
MOST_RESIDUALS = 4_000  # of each source that are kept
COST_NAMES = (
    "scale",
    "step_ns",
    "switch_ns",
    "arrive_ns",
    "begin_ns",
    "after_ns",
    "wake_ns",
    "leave_ns",
    "keep_ns",
    "read_ns",
    "yard_ns",
)
DELAY_NAMES = ("in_ns", "first_ns", "end_ns")

Told = Callable[[str], None]
"""Told what begins now."""


@dataclass(slots=True, kw_only=True)
class System:
    """What was measured of a system before anything is compared."""

    name: str
    capacity: float  # requests a second
    models: Models


@dataclass(slots=True, kw_only=True)
class CaseResult:
    """A case, whole: what ran, and how far the simulation was from it."""

    name: str
    title: str
    system: str
    load: float
    rate: float
    requests: int
    repeats: int
    cells: list[Cell]
    shares: list[Share]
    distances: list[Distance]
    engine: dict[str, float | None]  # means by the engine's own clock, real and simulated, in s
    schedule_delay: float  # p99, of the mean latency
    host: dict[str, float]  # constants that the simulation was given; means over the runs
    turns: list[float]  # for each run, what the simulation takes for the real one's, over what they took
    untold: list[Cell]  # the same cells, simulated without what the yardstick says; judged by nobody
    core_share: float  # of its core, the least that the server got just before a run
    yard_share: float  # of the time of the compared runs, what the yardstick took
    speeds: list[float]  # for each run, how much longer it took than in the calibrations around
    voids: list[str]  # why nothing of it counts
    real_s: float
    simulated_s: float
    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    residuals: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def verdict(self) -> str:
        """Nothing, if the runs are void; else fail if a mark is missed, and pass only if every one was decided."""
        verdicts = [cell.verdict for cell in self.cells] + [share.verdict for share in self.shares]
        if self.voids:
            return INCONCLUSIVE
        if FAIL in verdicts:
            return FAIL
        return INCONCLUSIVE if INCONCLUSIVE in verdicts else PASS

    @property
    def capacity(self) -> float:
        """What the system was found to serve, in requests a second."""
        return self.rate / self.load

    @property
    def speed_up(self) -> float:
        """Real time over the time that the simulation took."""
        return self.real_s / self.simulated_s


@dataclass(frozen=True, slots=True)
class Play:
    """What is simulated of a real run: its system, its load, what strikes it, and with which chances."""

    engine: EngineSettings
    trace: Trace
    struck: list[Any]
    models: Models  # none where steps are fitted
    seeds: Sequence[int]  # of the simulations

    def simulated(
        self, around: Sequence[LiveRun], tracks: Sequence[Track]
    ) -> tuple[Models, HostCosts, list[SimulatedRun]]:
        """What is made of the calibration runs `around`, and the simulations by it.

        `tracks`: the real run's, then those of the calibration runs.
        """
        track, *beside = tracks
        models = self.models or fitted(
            [step for each in zip(around, beside, strict=True) for step in steps_at_standard(*each)],
            models_of(self.engine),
        )
        host = host_costs(around, self.engine, models, beside)
        runs = [
            simulate(self.engine, self.trace, self.struck, models, host, seed, track) for seed in self.seeds
        ]
        return models, host, runs


@dataclass(slots=True, kw_only=True)
class Round:
    """One of the repetitions of a case."""

    host: HostCosts
    calibration: pd.DataFrame  # turns of the calibration runs, and what is said of them
    real: LiveRun
    simulated: list[SimulatedRun]  # of the same requests, each with chances of its own
    compared: pd.DataFrame  # turns of the real run: nothing was fitted to them
    standard_ns: float  # what the yardstick took in the calibration runs; 0 where it was not taken
    untold: list[SimulatedRun] = field(default_factory=list)  # without what it says, with the same chances

    @property
    def speed(self) -> float | None:
        """How many times as long as in the calibration runs the yardstick took in the real run."""
        own_ns = standard_ns([self.real.log])
        return own_ns / self.standard_ns if own_ns and self.standard_ns else None

    @property
    def turns(self) -> float:
        """What the simulation takes for the turns of the real run, over what they took."""
        return float(self.compared["foreseen_ns"].sum() / self.compared["took_ns"].sum())


class Workbench:
    """A machine, its systems as far as they are measured, and the settings of the comparison."""

    def __init__(
        self,
        settings: Protocol,
        machine: Machine,
        folder: Path,
        told: Told,
        capacities: dict[str, float] | None = None,
    ) -> None:
        """`folder` is for profiles that are measured; `capacities` are known from before an interruption."""
        self._protocol = settings
        self.systems: dict[str, System] = {}
        self._machine = machine
        self._folder = folder
        self.told = told
        self._capacities = capacities or {}

    @property
    def capacities(self) -> dict[str, float]:
        """What each system that was measured can serve, in requests a second."""
        return self._capacities | {name: system.capacity for name, system in self.systems.items()}

    def measured(self, case: Case) -> System:
        """Cost models, and the capacity from a burst."""
        settings = self._protocol
        run = run_settings(case, settings.capacity_requests, settings.overrides)
        self.told(f"{case.system}: cost models")
        models = cost_models(
            self._machine, run.engine, settings.simulated, settings.profile, settings.profile_s, self._folder
        )
        capacity = self._capacities.get(case.system)
        if capacity is None:
            self.told(f"{case.system}: capacity")
            seed = run.seed + CAPACITY_SEED
            burst = at_once(traffic(case, run, settings.capacity_requests, 1.0, seed))
            capacity = burst_rate(self.live(run, burst, []).tables.requests)
        return System(name=case.system, capacity=capacity, models=models)

    def calibration(self, case: Case, system: System, number: int, run_s: float) -> LiveRun:
        """A run with traffic of the same kind that is compared with nothing: calm first, then a crowd.

        It takes about `run_s`, unless the settings say how many requests it has.
        """
        count = self._protocol.calibration_requests or calibration_count(run_s, system.capacity)
        overrides = self._protocol.overrides
        calm, run = replace(case, cv=1.0), run_settings(case, count, overrides)
        seed = run.seed + CALIBRATION_SEED + number
        return self.live(
            run, with_burst(traffic(calm, run, count, CALIBRATION_LOAD * system.capacity, seed)), []
        )

    def live(self, run: RunSettings, trace: Trace, struck: list[Any]) -> LiveRun:
        """One real run, with a store of its own where the ssd tier has none."""
        store = self._folder / "store"
        every_ns = to_ns(self._protocol.yard_every_s) or None
        job = LiveJob(settings=with_store(run.engine, store), yard_every_ns=every_ns, faults=struck)
        try:
            return self._machine.run(job, trace)
        finally:
            rmtree(store, ignore_errors=True)


class Bench(Workbench):
    """Where cases are compared, one after the other."""

    def __init__(
        self,
        settings: FidelitySettings,
        machine: Machine,
        folder: Path,
        told: Told,
        capacities: dict[str, float] | None = None,
    ) -> None:
        super().__init__(settings, machine, folder, told, capacities)
        self._settings = settings

    def results(self, names: list[str]) -> Iterator[CaseResult]:
        """One case after the other, each with the system that it needs. Raises BadSettings."""
        for name in names:
            case = CASES[name]
            if case.system not in self.systems:
                self.systems[case.system] = self.measured(case)
            yield self._compared(name, case, self.systems[case.system])

    def _compared(self, name: str, case: Case, system: System) -> CaseResult:
        """Calibration and reality in turn, then the simulation of each real run from its two neighbours."""
        settings, rate = self._settings, case.load * system.capacity
        count = self.count(rate, case, system)
        run = run_settings(case, count, settings.overrides, rate)
        trace = traffic(case, run, count, rate, run.seed)
        struck = faults(case, run, trace)
        real, calibrations = [], []
        for number in range(settings.repeats):
            self.told(f"{name}: {number + 1} of {settings.repeats}, {len(trace) / rate:.0f} s of real load")
            calibrations.append(self.calibration(case, system, number, len(trace) / rate))
            real.append(self.live(run, trace, struck))
        calibrations.append(self.calibration(case, system, settings.repeats, len(trace) / rate))
        rounds = []
        for number, (live, around) in enumerate(zip(real, pairwise(calibrations), strict=True)):
            self.told(f"{name}: simulations {number + 1} of {settings.repeats}")
            seeds = seeds_of(run.seed, number, settings.draws)
            play = Play(run.engine, trace, struck, system.models, seeds)
            rounds.append(replace(simulated_round(play, live, around), untold=untold(play, live, around)))
        return result(name, case, rate, rounds, settings)

    def count(self, rate: float, case: Case, system: System) -> int:
        """How many requests each run of a case has: its part of the time, less what goes before it."""
        settings = self._settings
        if settings.requests is not None:
            return settings.requests
        round_s = (settings.minutes * 60 - self._before_s()) / (len(settings.cases) * settings.repeats)
        beside, given = (settings.repeats + 1) / settings.repeats, settings.calibration_requests
        run_s = round_s - RUN_OVERHEAD_S * (1 + beside)
        if given is None:
            run_s /= 1 + beside
        else:
            run_s -= calibration_s(given, system.capacity) * beside
        return max(LEAST_REQUESTS if case.marks is None else LEAST_JUDGED, round(run_s * rate))

    def _before_s(self) -> float:
        """About what is measured before anything is compared: a profile for each model, a burst for each system."""
        settings = self._settings
        models: set[str] = set()
        systems = systems_of(settings.cases)
        for case in {CASES[name].system: CASES[name] for name in settings.cases}.values():
            models.update(models_of(run_settings(case, 1, settings.overrides).engine))
        profiles_s = (settings.profile_s + LOAD_S) * len(models) if settings.simulated == PROFILE else 0.0
        return profiles_s + BURST_S * len(systems)


def calibration_s(count: int, capacity: float) -> float:
    """About how long a calibration run of so many requests takes."""
    crowd = crowd_of(count)
    return (count - crowd) / (CALIBRATION_LOAD * capacity) + crowd / capacity


def calibration_count(run_s: float, capacity: float) -> int:
    """The requests of a calibration run that takes about as long."""
    served = run_s * capacity  # if it were crowded all the time
    count = served / (2 / 3 / CALIBRATION_LOAD + 1 / 3)
    if count > 3 * MOST_CROWDED:
        count = MOST_CROWDED + (served - MOST_CROWDED) * CALIBRATION_LOAD
    return max(LEAST_CALIBRATION, round(count))


def seeds_of(seed: int, number: int, draws: int) -> list[int]:
    """Those of the simulations of a round: none twice in a comparison."""
    return [seed + number * draws + draw for draw in range(draws)]


def simulated_round(play: Play, live: LiveRun, around: Sequence[LiveRun]) -> Round:
    """The simulations of a real run, one for each seed, from the calibration runs `around` it and its yardstick."""
    runs, standard = (live, *around), standard_ns(each.log for each in around)
    tracks = [track_of(each.log, standard) for each in runs]
    models, host, simulated = play.simulated(around, tracks)
    said = [predictions(each.log.steps, play.engine, models, host.factors) for each in runs]
    turns = [
        turns_of(each.log, said_ns, each.arrivals_ns, each.reads_ns, track)
        for each, said_ns, track in zip(runs, said, tracks, strict=True)
    ]
    return Round(
        host=host,
        calibration=pd.concat([residuals(each, host, "calibration") for each in turns[1:]]),
        real=live,
        simulated=simulated,
        compared=residuals(turns[0], host, "compared"),
        standard_ns=standard,
    )


def untold(play: Play, live: LiveRun, around: Sequence[LiveRun]) -> list[SimulatedRun]:
    """The same simulations where nobody tells how fast the machine was; none where nobody knows.

    The yardstick takes the machine as often and as long: what differs is what it says.
    """
    if not live.log.readings:
        return []
    tracks = [Track(readings=each.log.readings) for each in (live, *around)]
    return play.simulated(around, tracks)[-1]


def steps_at_standard(run: LiveRun, track: Track) -> list[Step]:
    """The steps of a run, each as long as it would have been at the standard pace."""
    return [
        step._replace(duration_ns=round(step.duration_ns / track.at(step.begun_ns))) for step in run.log.steps
    ]


def result(
    name: str, case: Case, rate: float, rounds: Sequence[Round], settings: FidelitySettings
) -> CaseResult:
    """The comparison of a case's runs: what the client saw, live and simulated."""
    real, simulated = [each.real for each in rounds], [run for each in rounds for run in each.simulated]
    ours, theirs = [run.seen for run in real], [run.seen for run in simulated]
    late = max(schedule_delay(run) for run in real)
    is_calm = case.load <= LOW_LOAD
    return CaseResult(
        name=name,
        title=case.title,
        system=case.system,
        load=case.load,
        rate=rate,
        requests=len(ours[0]),
        repeats=len(real),
        cells=cells(ours, theirs, case.marks, settings.max_floor),
        shares=shares(ours, theirs, is_calm=is_calm, is_judged=is_calm or case.marks is not None),
        distances=distances(ours, theirs),
        engine=engine_figures(rounds),
        schedule_delay=late,
        host=host_figures(rounds),
        turns=[each.turns for each in rounds],
        untold=untold_cells(ours, rounds),
        core_share=min(run.tables.core_share for run in real),
        yard_share=float(np.mean([yard_share(run) for run in real])),
        speeds=[each.speed for each in rounds if each.speed is not None],
        voids=voids(late, settings.max_schedule_delay),
        real_s=float(np.mean([run.wall_s for run in real])),
        simulated_s=float(np.mean([run.wall_s for run in simulated])),
        points=points(name, ours, [each.simulated[0].seen for each in rounds]),
        residuals=pd.concat(
            [
                thinned(pd.concat([getattr(each, source) for each in rounds]))
                for source in ("calibration", "compared")
            ]
        ),
    )


def untold_cells(real: list[pd.DataFrame], rounds: Sequence[Round]) -> list[Cell]:
    """The cells of simulations that were not told how fast the machine was; none where nobody knows."""
    runs = [run.seen for each in rounds for run in each.untold]
    return cells(real, runs, None) if runs else []


def thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """So many rows as are kept, evenly over all of them."""
    chosen = np.linspace(0, len(rows) - 1, min(MOST_RESIDUALS, len(rows))).astype(np.int64)
    return rows.iloc[chosen]


def voids(late: float, most: float) -> list[str]:
    """Why nothing of a case counts; nothing where it does."""
    if late <= most:
        return []
    return [
        f"the load was late: p99 of the schedule delay is {late:.1%} of the mean latency, but may be {most:.1%}"
    ]


def host_figures(rounds: Sequence[Round]) -> dict[str, float]:
    """What the simulation was given of the host, in the mean over the runs."""
    figures = {name: float(np.mean([getattr(each.host, name) for each in rounds])) for name in COST_NAMES}
    figures["scale"] = float(np.mean([each.host.scale * mean_scale(each.host) for each in rounds]))
    for name in DELAY_NAMES:
        figures[name] = float(np.mean([getattr(each.host, name).mean() for each in rounds]))
    figures["tier_wait_s"] = float(np.mean([mean_of(each.host.tier_ns) for each in rounds]) / NS_PER_S)
    return figures


def burst_rate(requests: pd.DataFrame) -> float:
    """Requests a second that a burst is served at, up to where only a few are left and batches are not full.

    From the burst itself on: the middle alone would leave out the prefill that went before its answers.
    """
    completed = done(requests)
    ends_s = np.sort(completed["finished_ns"].to_numpy(dtype=np.float64)) / NS_PER_S
    last = int(FULL_PART * (len(ends_s) - 1))
    return float((last + 1) / (ends_s[last] - completed["arrival_ns"].min() / NS_PER_S))


def schedule_delay(run: LiveRun) -> float:
    """The p99 of how late requests were sent, as a share of the mean latency that the client saw."""
    client = run.client.dropna()
    latency_s = (client["last_ns"] - client["intended_ns"]).astype("float64").mean() / NS_PER_S
    return float(run.schedule_delay_s.quantile(0.99) / latency_s)


def yard_share(run: LiveRun) -> float:
    """The share of a run's time in which the yardstick had the machine."""
    taken_ns = sum(each.ended_ns - each.begun_ns for each in run.log.readings)
    return taken_ns / NS_PER_S / run.wall_s


def mean_scale(host: HostCosts) -> float:
    """The scale of the models' steps, in the mean over models and kinds of steps."""
    return float(np.mean([each.scales for each in host.factors.values()])) if host.factors else 1.0


def engine_figures(rounds: Sequence[Round]) -> dict[str, float | None]:
    """Means by the engine's own clock, real and simulated, in s: without the way to another process and back."""
    figures: dict[str, float | None] = {}
    for side in ("real", "simulated"):
        for metric, latency in LATENCIES.items():
            found = []
            for each in rounds:
                if side == "real":  # a simulated engine settles a request at once
                    table = done(each.real.tables.requests)
                    found.append(latency(table.assign(finished_ns=table["last_token_ns"])))
                else:
                    found += [latency(done(run.requests)) for run in each.simulated]
            values = np.concatenate(found)
            figures[f"{side} {metric}"] = float(values.mean()) if len(values) else None
    return figures


def points(name: str, real: list[pd.DataFrame], simulated: list[pd.DataFrame]) -> pd.DataFrame:
    """The latencies of every completed request of these runs, for pictures and for those who want to look again."""
    tables = []
    for side, runs in (("real", real), ("simulated", simulated)):
        for number, run in enumerate(runs):
            rows = done(run)
            several = rows["output_tokens"] > 1
            table = pd.DataFrame({"request_id": rows["request_id"].astype("int64")})
            table["TTFT"], table["E2E"] = LATENCIES["TTFT"](rows), LATENCIES["E2E"](rows)
            table.loc[several, "TPOT"] = LATENCIES["TPOT"](rows)
            table.insert(0, "run", number)
            table.insert(0, "side", side)
            table.insert(0, "case", name)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def mean_of(values: npt.NDArray[np.float64]) -> float:
    """Their mean; 0 of none."""
    return float(values.mean()) if len(values) else 0.0


def with_store(engine: EngineSettings, folder: Path) -> EngineSettings:
    """The same engine, whose ssd tier has a new folder behind it, where it has none of its own."""
    ssd = engine.cache.ssd
    if ssd is None or ssd.path is not None:
        return engine
    return replace(engine, cache=replace(engine.cache, ssd=replace(ssd, path=str(folder))))


def systems_of(names: list[str]) -> list[str]:
    """The systems that these cases need, in their order."""
    needed = [CASES[name].system for name in names]
    return [name for name in SYSTEMS if name in needed]

"""The protocol: capacity and host first, then each case live several times and simulated, then the comparison."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S
from engine.settings import EngineSettings
from sim import metrics
from sim.config import RunSettings
from sim.fidelity.calibrate import host_costs, predictions
from sim.fidelity.cases import CASES, SYSTEMS, Case, at_once, faults, run_settings, traffic
from sim.fidelity.compare import (
    FAIL,
    INCONCLUSIVE,
    LATENCIES,
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
from sim.fidelity.live import LiveRun, Machine
from sim.fidelity.profiles import Models, cost_models
from sim.fidelity.server import LiveJob
from sim.fidelity.settings import FidelitySettings
from sim.fidelity.simulated import SimulatedRun, simulate
from sim.fidelity.steps import fitted, models_of
from sim.traffic import Trace

CALIBRATION_LOAD = 0.6
CALIBRATION_SEED, CAPACITY_SEED = 1_000_003, 1_000_033  # added to the run's: traffic that is not compared
CALM_LOAD = 0.7
STEADY_PART = (0.25, 0.75)  # of a burst: from when to when its rate is taken

Told = Callable[[str], None]
"""Told what begins now."""


@dataclass(slots=True, kw_only=True)
class System:
    """What was measured of a system before anything is compared."""

    name: str
    capacity: float  # requests a second
    models: Models


@dataclass(slots=True, kw_only=True)
class Calibration:
    """What was measured of the host just before a real run, on traffic that is not compared."""

    host: HostCosts
    models: Models
    tier_wait_s: float  # of a request whose prefix had to be brought up from a file


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
    client: dict[
        str, float | None
    ]  # as the other process saw it, from the intended times; the socket is inside
    schedule_delay: float  # p99, of the mean latency
    host: dict[str, float]  # constants that the simulation was given; means over the runs
    voids: list[str]  # why nothing of it counts
    real_s: float
    simulated_s: float
    points: pd.DataFrame = field(default_factory=pd.DataFrame)

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


@dataclass(slots=True, kw_only=True)
class Round:
    """One of the repetitions of a case."""

    calibration: Calibration
    real: LiveRun
    simulated: SimulatedRun


class Bench:
    """A machine, its systems as far as they are measured, and the settings of the comparison."""

    def __init__(self, settings: FidelitySettings, machine: Machine, folder: Path, told: Told) -> None:
        self.settings = settings
        self.systems: dict[str, System] = {}
        self._machine = machine
        self._folder = folder
        self._told = told

    def results(self, names: list[str]) -> Iterator[CaseResult]:
        """One case after the other, each with the system that it needs. Raises BadSettings."""
        for name in names:
            case = CASES[name]
            if case.system not in self.systems:
                self.systems[case.system] = self._measured(case)
            yield self._compared(name, case, self.systems[case.system])

    def _measured(self, case: Case) -> System:
        """Cost models, and the capacity from a burst."""
        settings = self.settings
        run = run_settings(case, settings.capacity_requests, settings.overrides)
        self._told(f"{case.system}: cost models")
        models = cost_models(
            self._machine, run.engine, settings.simulated, settings.profile, settings.profile_s, self._folder
        )
        self._told(f"{case.system}: capacity")
        seed = run.seed + CAPACITY_SEED
        burst = at_once(traffic(case, run, settings.capacity_requests, 1.0, seed))
        capacity = burst_rate(self._live(run, burst, []).tables.requests)
        return System(name=case.system, capacity=capacity, models=models)

    def _calibrated(self, case: Case, system: System, number: int) -> Calibration:
        """The host's costs, from a logged run at a calm load and other traffic."""
        count, overrides = self.settings.calibration_requests, self.settings.overrides
        calm, run = replace(case, cv=1.0), run_settings(case, count, overrides)
        seed = run.seed + CALIBRATION_SEED + number
        live = self._live(
            run, traffic(calm, run, count, CALIBRATION_LOAD * system.capacity, seed), [], logged=True
        )
        log = live.tables.log
        assert log is not None, "the run was logged"
        models = system.models or fitted(log.steps, models_of(run.engine))
        predicted = predictions(log.steps, run.engine, models)
        host = host_costs(log, predicted, live.tables.answer_ns)
        return Calibration(host=host, models=models, tier_wait_s=tier_wait_s(live.tables.requests))

    def _compared(self, name: str, case: Case, system: System) -> CaseResult:
        """Calibration, reality and simulation in turn: what changes on the machine meanwhile is in all of them."""
        settings, rate = self.settings, case.load * system.capacity
        count = self.count(rate)
        run = run_settings(case, count, settings.overrides)
        trace = traffic(case, run, count, rate, run.seed)
        struck = faults(case, run, trace)
        rounds = []
        for number in range(settings.repeats):
            self._told(f"{name}: {number + 1} of {settings.repeats}, {len(trace) / rate:.0f} s of real load")
            calibration = self._calibrated(case, system, number)
            real = self._live(run, trace, struck)
            engine = with_tier_wait(run.engine, calibration.tier_wait_s)
            seed = run.seed + number
            simulated = simulate(engine, trace, struck, calibration.models, calibration.host, seed)
            rounds.append(Round(calibration=calibration, real=real, simulated=simulated))
        return result(name, case, rate, rounds, settings)

    def count(self, rate: float) -> int:
        """How many requests each run of a case has."""
        settings = self.settings
        if settings.requests is not None:
            return settings.requests
        run_s = settings.minutes * 60 / (len(settings.cases) * settings.repeats)
        return max(1, round(run_s * rate))

    def _live(self, run: RunSettings, trace: Trace, struck: list[Any], *, logged: bool = False) -> LiveRun:
        store = self._folder / "store"
        job = LiveJob(settings=with_store(run.engine, store), count=len(trace), faults=struck, logged=logged)
        try:
            return self._machine.run(job, trace)
        finally:
            rmtree(store, ignore_errors=True)


def result(
    name: str, case: Case, rate: float, rounds: Sequence[Round], settings: FidelitySettings
) -> CaseResult:
    """The comparison of a case's runs."""
    real, simulated = [each.real for each in rounds], [each.simulated for each in rounds]
    ours, theirs = [run.tables.requests for run in real], [run.requests for run in simulated]
    late = max(schedule_delay(run) for run in real)
    return CaseResult(
        name=name,
        title=case.title,
        system=case.system,
        load=case.load,
        rate=rate,
        requests=len(ours[0]),
        repeats=len(real),
        cells=cells(ours, theirs, case.marks, settings.max_floor),
        shares=shares(ours, theirs, is_calm=case.load <= CALM_LOAD),
        distances=distances(ours, theirs),
        client=client_figures(real),
        schedule_delay=late,
        host=host_figures(rounds),
        voids=voids(late, settings.max_schedule_delay),
        real_s=float(np.mean([run.wall_s for run in real])),
        simulated_s=float(np.mean([run.wall_s for run in simulated])),
        points=points(name, ours, theirs),
    )


def voids(late: float, most: float) -> list[str]:
    """Why nothing of a case counts; nothing where it does."""
    if late <= most:
        return []
    return [
        f"the load was late: p99 of the schedule delay is {late:.1%} of the mean latency, but may be {most:.1%}"
    ]


def host_figures(rounds: Sequence[Round]) -> dict[str, float]:
    """The host's constants, in the mean over the calibration runs."""
    hosts = [each.calibration.host for each in rounds]
    names = ("step_ns", "begin_ns", "retire_ns", "answer_ns", "scale")
    figures = {name: float(np.mean([getattr(host, name) for host in hosts])) for name in names}
    figures["tier_wait_s"] = float(np.mean([each.calibration.tier_wait_s for each in rounds]))
    return figures


def burst_rate(requests: pd.DataFrame) -> float:
    """Requests a second while a burst is served: without its beginning and its end, where batches are not full."""
    ends_s = np.sort(done(requests)["finished_ns"].to_numpy(dtype=np.float64)) / NS_PER_S
    first, last = (int(share * (len(ends_s) - 1)) for share in STEADY_PART)
    return float((last - first) / (ends_s[last] - ends_s[first]))


def schedule_delay(run: LiveRun) -> float:
    """The p99 of how late requests were sent, as a share of the mean latency that the client saw."""
    client = run.client.dropna()
    latency_s = (client["last_ns"] - client["intended_ns"]).astype("float64").mean() / NS_PER_S
    return float(run.schedule_delay_s.quantile(0.99) / latency_s)


def client_figures(real: list[LiveRun]) -> dict[str, float | None]:
    """TTFT and E2E on the client's side, in s, from the intended time on; means over the runs."""
    figures: dict[str, float | None] = {}
    for name, column in (("TTFT", "first_ns"), ("E2E", "last_ns")):
        spans = [
            ((run.client[column] - run.client["intended_ns"]).dropna() / NS_PER_S).to_numpy(dtype=np.float64)
            for run in real
        ]
        figures[f"{name} mean"] = float(np.mean([span.mean() for span in spans]))
        tails = [metrics.percentile(span, 99.0) for span in spans]
        known = [tail for tail in tails if tail is not None]
        figures[f"{name} p99"] = float(np.mean(known)) if known else None
    return figures


def points(name: str, real: list[pd.DataFrame], simulated: list[pd.DataFrame]) -> pd.DataFrame:
    """The latencies of every completed request of every run, for pictures and for those who want to look again."""
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


def tier_wait_s(requests: pd.DataFrame) -> float:
    """What a request waited for a prefix that had to be read from files, in the mean; 0 where none had to."""
    rows = done(requests)
    rows = rows[rows["cached_tokens_ssd"] > 0]
    if rows.empty:
        return 0.0
    return float((rows["queued_ns"] - rows["tried_ns"]).astype("float64").mean() / NS_PER_S)


def with_tier_wait(engine: EngineSettings, wait_s: float) -> EngineSettings:
    """The same engine, whose ssd tier is as slow as the real one was seen to be."""
    ssd = engine.cache.ssd
    if ssd is None or not wait_s:
        return engine
    return replace(engine, cache=replace(engine.cache, ssd=replace(ssd, latency_s=wait_s)))


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

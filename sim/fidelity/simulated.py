"""The simulated side: the same engine, the same load and the same faults, on virtual time."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from engine.clock import NS_PER_S, stopwatch_ns
from engine.settings import CacheSettings, EngineSettings, ExecutorSettings
from sim.config import TimedFault
from sim.fidelity.device import SIMULATED, HostCosts, Ledger, SimulatedOptions
from sim.stage import Stage
from sim.traffic import Trace

SAMPLE_EVERY_S = 3_600.0  # nobody looks at the series


@dataclass(slots=True, kw_only=True)
class SimulatedRun:
    """The tables of a simulated run, and how long the simulation took."""

    requests: pd.DataFrame
    decisions: pd.DataFrame
    wall_s: float


def simulate(
    settings: EngineSettings,
    trace: Trace,
    faults: list[TimedFault],
    models: dict[str, ExecutorSettings],
    host: HostCosts,
    seed: int,
) -> SimulatedRun:
    """One run. `seed` draws the spread of the steps, and nothing else. Raises BadSettings."""
    begun_ns = stopwatch_ns()
    stage = Stage(twin(settings, models, host, seed), trace, SAMPLE_EVERY_S)
    try:
        for number, timed in enumerate(faults):
            stage.at(timed.at_s, timed.fault, f"faults[{number}].replica")
        stage.play()
        requests, decisions = stage.recorder.requests(), stage.recorder.decisions()
    finally:
        stage.close()
    done = requests["outcome"] == "completed"
    requests.loc[done, "finished_ns"] += round(host.answer_ns)
    return SimulatedRun(requests=requests, decisions=decisions, wall_s=(stopwatch_ns() - begun_ns) / NS_PER_S)


def twin(
    settings: EngineSettings, models: dict[str, ExecutorSettings], host: HostCosts, seed: int
) -> EngineSettings:
    """The same engine with cost models for executors, and tiers that are only sizes and times."""
    made = SimulatedOptions(models=models, host=host, ledger=Ledger(), seed=seed)
    options = {"models": made.models, "host": host, "ledger": made.ledger, "seed": seed}
    executor = ExecutorSettings(name=SIMULATED, options=options)
    return replace(settings, executor=executor, cache=without_stores(settings.cache))


def without_stores(cache: CacheSettings) -> CacheSettings:
    """The same tiers with nothing behind them."""
    tiers: dict[str, Any] = {name: replace(tier, path=None, url=None) for name, tier in cache.tiers.items()}
    return replace(cache, **tiers)

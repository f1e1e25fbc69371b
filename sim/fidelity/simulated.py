"""The simulated side: the same engine, the same load and the same faults, on virtual time."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.clock import NS_PER_S, stopwatch_ns
from engine.engine import Engine
from engine.settings import CacheSettings, EngineSettings, ExecutorSettings
from sim.config import TimedFault
from sim.fidelity.device import SIMULATED, Course, HostCosts, Ledger
from sim.fidelity.steplog import Reading
from sim.fidelity.track import Track
from sim.stage import Stage
from sim.streams import stream
from sim.traffic import Trace
from sim.traffic.trace import Times

SAMPLE_EVERY_S = 3_600.0  # nobody looks at the series
FILES = "ssd"  # the tier behind which a real run has files


@dataclass(slots=True, kw_only=True)
class SimulatedRun:
    """What the engine recorded in a simulated run, what a client saw, and how long the simulation took."""

    requests: pd.DataFrame
    seen: pd.DataFrame
    decisions: pd.DataFrame
    wall_s: float


def simulate(
    settings: EngineSettings,
    trace: Trace,
    faults: list[TimedFault],
    models: dict[str, ExecutorSettings],
    host: HostCosts,
    seed: int,
    track: Track | None = None,
) -> SimulatedRun:
    """One run. `seed` draws the spread of the steps and all delays, nothing else. Raises BadSettings.

    `track`: at each time everything takes so many times what `host` and `models` say.
    """
    begun_ns = stopwatch_ns()
    engine = twin(settings, models, host, seed, track or Track())
    stage = Stage(engine, on_the_way(trace, host), SAMPLE_EVERY_S)
    try:
        stage.door = door(stage, host, seed)
        slow_down(stage.engine, host, seed)
        for number, timed in enumerate(faults):
            stage.at(timed.at_s, timed.fault, f"faults[{number}].replica")
        stage.play()
        requests, decisions = stage.recorder.requests(), stage.recorder.decisions()
    finally:
        stage.close()
    seen = seen_by_client(requests, trace, host, seed)
    wall_s = (stopwatch_ns() - begun_ns) / NS_PER_S
    return SimulatedRun(requests=requests, seen=seen, decisions=decisions, wall_s=wall_s)


def on_the_way(trace: Trace, host: HostCosts) -> Trace:
    """The same requests at the times at which they come to the engine's door: all take at least so long to it."""
    return replace(trace, arrival_ns=trace.arrival_ns + round(host.in_ns.min()))


def door(stage: Stage, host: HostCosts, seed: int) -> Callable[[], Awaitable[None]]:
    """What lets requests in when the real engine would; on one line nobody overtakes."""
    clock, options = stage.clock, stage.engine.settings.executor.options
    ledger, track = options["ledger"], options["track"]
    random, least_ns, latest_ns = stream(seed, "fidelity.in"), round(host.in_ns.min()), 0

    async def pass_through() -> None:
        nonlocal latest_ns
        now_ns = clock.now_ns()
        ends_ns = ledger.turn_ends_ns(now_ns)
        if (yard_ends_ns := ledger.yard_ends_ns(now_ns)) is not None:
            opens_ns = yard_ends_ns
        elif ends_ns > now_ns:
            opens_ns = host.door.opens_ns(now_ns, ends_ns, random)
        else:
            opens_ns = now_ns + round(random.choice(host.in_ns)) - least_ns
        latest_ns = max(latest_ns, opens_ns)
        if latest_ns > now_ns:
            await clock.sleep(latest_ns - now_ns)
        now_ns = clock.now_ns()
        ledger.lengthen(now_ns, round(host.arrive_ns * track.at(now_ns)))

    return pass_through


def seen_by_client(requests: pd.DataFrame, trace: Trace, host: HostCosts, seed: int) -> pd.DataFrame:
    """The requests table with a client's times: from the intended time to the news of first token and end."""
    number = requests["request_id"].to_numpy(dtype=np.int64)
    seen = requests.copy()
    seen["arrival_ns"] = trace.arrival_ns[number]
    seen["first_token_ns"] = (
        requests["first_token_ns"] + drawn(host.first_ns, len(trace), seed, "first")[number]
    )
    seen["finished_ns"] = requests["finished_ns"] + drawn(host.end_ns, len(trace), seed, "end")[number]
    return seen


def drawn(delays: "npt.NDArray[np.float64]", count: int, seed: int, name: str) -> Times:
    """So many of these delays, by chance, in whole ns."""
    found = stream(seed, f"fidelity.{name}").choice(delays, count)
    whole: Times = np.maximum(np.rint(found), 0).astype(np.int64)
    return whole


def twin(
    settings: EngineSettings,
    models: dict[str, ExecutorSettings],
    host: HostCosts,
    seed: int,
    track: Track,
) -> EngineSettings:
    """The same engine with cost models for executors, and tiers that are only sizes and times."""
    course = Course(host.ranks, stream(seed, "fidelity.turns"))
    options = {"models": models, "host": host, "course": course, "track": track}
    ledger = Ledger(yards=[(each.due_ns, yard_ns(each, host, track)) for each in reversed(track.readings)])
    executor = ExecutorSettings(name=SIMULATED, options=options | {"ledger": ledger})
    return replace(settings, executor=executor, cache=without_stores(settings.cache, host))


def yard_ns(reading: Reading, host: HostCosts, track: Track) -> int:
    """How long the yardstick took the machine, with what its turn among others took besides."""
    return reading.ended_ns - reading.begun_ns + round(host.yard_ns * track.at(reading.begun_ns))


def without_stores(cache: CacheSettings, host: HostCosts) -> CacheSettings:
    """The same tiers with nothing behind them, an ssd tier as slow in the mean as the real one was seen to be."""
    tiers: dict[str, Any] = {name: replace(tier, path=None, url=None) for name, tier in cache.tiers.items()}
    if FILES in tiers and len(host.tier_ns):
        tiers[FILES] = replace(tiers[FILES], latency_s=float(host.tier_ns.mean()) / NS_PER_S)
    return replace(cache, **tiers)


def slow_down(engine: Engine, host: HostCosts, seed: int) -> None:
    """Let a read from files take one of the times that it took in the calibration runs, and its share of the core."""
    if not len(host.tier_ns):
        return
    waits, random = host.tier_ns.tolist(), stream(seed, f"fidelity.{FILES}")
    ledger, track = (engine.settings.executor.options[name] for name in ("ledger", "track"))

    def read_ns(_size_bytes: int) -> float:
        now_ns = engine.clock.now_ns()
        ledger.book(now_ns, round(host.read_ns * track.at(now_ns)))
        return float(waits[int(random.integers(len(waits)))])

    for tier, way in zip(engine.cache.tiers, engine.carrier.ways, strict=True):
        if tier.name == FILES:
            way.drawn_ns = read_ns

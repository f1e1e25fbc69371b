"""The real thing, run: an engine and a load in processes of their own, and what both saw."""

import os
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.clock import NS_PER_S, stopwatch_ns
from engine.errors import EngineError
from sim.fidelity.load import send_loads
from sim.fidelity.server import LiveJob, LiveTables, MeasureJob, serve_jobs
from sim.fidelity.steplog import StepLog
from sim.traffic import Trace

SPAN_S = 20.0  # that closing may take before a process is ended


@dataclass(slots=True, kw_only=True)
class LiveRun:
    """What the engine recorded, what the client saw, and how long it took."""

    tables: LiveTables
    client: pd.DataFrame
    wall_s: float

    @property
    def schedule_delay_s(self) -> "pd.Series[float]":
        """How late each request was sent."""
        late_ns = self.client["sent_ns"] - self.client["intended_ns"]
        return late_ns.astype("float64") / NS_PER_S

    @property
    def log(self) -> StepLog:
        """The steps, in times from the load's start."""
        return self.tables.log

    @property
    def arrivals_ns(self) -> "npt.NDArray[np.float64]":
        """When each request came to the engine."""
        return self.tables.requests["arrival_ns"].to_numpy(dtype=np.float64)

    @property
    def tried_ns(self) -> "npt.NDArray[np.float64]":
        """When the engine had let each request in and asked for its prefix."""
        return self.tables.requests["tried_ns"].dropna().to_numpy(dtype=np.float64)

    @property
    def reads_ns(self) -> "npt.NDArray[np.float64]":
        """When each prefix was there that had to come from files, in part at least."""
        table = self.tables.requests
        there = table[(table["outcome"] == "completed") & (table["cached_tokens_ssd"] > 0)]["queued_ns"]
        return there.to_numpy(dtype=np.float64)

    @property
    def both(self) -> pd.DataFrame:
        """What the engine recorded of each request, and what the client saw of it."""
        return self.tables.requests.merge(self.client, on="request_id")

    @property
    def seen(self) -> pd.DataFrame:
        """The requests table with the client's times: from the intended time to the news in another process."""
        both = self.both
        both["arrival_ns"], both["finished_ns"] = both["intended_ns"], both["last_ns"]
        both["first_token_ns"] = both["first_ns"]
        return both[list(self.tables.requests.columns)]


class Machine:
    """Two processes on different cores where there are two: one serves, one loads. Use it in a `with`."""

    def __init__(self) -> None:
        self.server_cores, self.load_cores = split_cores()
        context = get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for work, cores in ((serve_jobs, self.server_cores), (send_loads, self.load_cores)):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, cores), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            if error is None and process.is_alive():
                end.send(None)
                process.join(SPAN_S)
            if process.is_alive():
                process.terminate()
                process.join()
            end.close()

    def measure(self, job: MeasureJob) -> None:
        """Measure a cost model on the core that serves. Raises what measuring raises."""
        self._ends[0].send(job)
        received(self._ends[0])

    def run(self, job: LiveJob, trace: Trace) -> LiveRun:
        """One run of that load on a new engine. Raises what the engine raises when it cannot start."""
        server, load = self._ends
        server.send(job)
        port = received(server)
        begun_ns = stopwatch_ns()
        load.send((trace, port))
        client = received(load)
        wall_s = (stopwatch_ns() - begun_ns) / NS_PER_S
        return LiveRun(tables=received(server), client=client, wall_s=wall_s)


def received(end: Connection) -> Any:
    """What the other process says; an error of the engine is raised here, and so is its end."""
    try:
        answer = end.recv()
    except EOFError as error:
        raise RuntimeError("a process of the comparison has died; what it said stands above") from error
    if isinstance(answer, EngineError):
        raise answer
    return answer


def split_cores() -> tuple[list[int], list[int]]:
    """One core for the engine, the others for the load; none are named where there is only one, or no say in it."""
    if not hasattr(os, "sched_getaffinity"):
        return [], []
    cores = sorted(os.sched_getaffinity(0))
    return ([cores[0]], cores[1:]) if len(cores) > 1 else ([], [])

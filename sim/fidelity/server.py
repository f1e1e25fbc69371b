"""The live side: a process with the real engine on the wall clock, which serves what comes over a socket."""

import asyncio
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from signal import SIG_IGN, SIGINT, signal
from typing import Any

import numpy as np
import pandas as pd

from engine import garbage
from engine.clock import WallClock, processor_ns, stopwatch_ns, to_ns
from engine.engine import Engine
from engine.errors import EngineError
from engine.execution import Replica, Work
from engine.request import Request, Stream
from engine.settings import EngineSettings, ExecutorSettings
from sim.config import TimedFault
from sim.fidelity.device import LIVE
from sim.fidelity.steplog import StepLog
from sim.fidelity.wire import END, FIRST, HEAD, news, request_of
from sim.fidelity.yardstick import Yardstick
from sim.recorder import Recorder

WARM_UP_TOKENS = (1, 48, 300)
WARM_UP_ANSWER = 4
LOOK_NS = 200_000_000  # how long a core is looked at


@dataclass(slots=True, kw_only=True)
class LiveJob:
    """One run of the real engine. Faults strike at their time after the load's start.

    The yardstick is taken each `yard_every_ns`, or not at all.
    """

    settings: EngineSettings
    yard_every_ns: int | None = None
    faults: list[TimedFault] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class MeasureJob:
    """A cost model to be measured on this process's core, and where it goes."""

    settings: EngineSettings
    model: str
    budget_s: float
    path: str


@dataclass(slots=True, kw_only=True)
class LiveTables:
    """What the server's side of a run leaves: the engine's own tables and its steps, times from the load's start.

    The requests table has a column more: `last_token_ns`.
    """

    requests: pd.DataFrame
    decisions: pd.DataFrame
    log: StepLog
    core_share: float  # what the server got of its core when it asked for all of it, just before the load


def pin(cores: Iterable[int]) -> None:
    """Keep this process on these cores, where the system can."""
    wanted = set(cores)
    if wanted and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, wanted)


def settle_in(cores: Iterable[int]) -> None:
    """Begin as a process of a machine: on these cores, and ended by who started it, not by Ctrl-C."""
    signal(SIGINT, SIG_IGN)
    pin(cores)


def serve_jobs(pipe: Connection, cores: list[int]) -> None:
    """The process: one job after the other, until None comes. An error of the engine is an answer."""
    settle_in(cores)
    while (job := pipe.recv()) is not None:
        try:
            pipe.send(measured(job) if isinstance(job, MeasureJob) else asyncio.run(serve(job, pipe)))
        except EngineError as error:
            pipe.send(error)


def measured(job: MeasureJob) -> str:
    """Measure and fit a cost model; where it stands."""
    from sim.profile import fit, measure  # noqa: PLC0415  only who measures needs it

    points = measure(job.settings, job.model, budget_s=job.budget_s, seed=job.settings.seed)
    fit(points, job.settings.seed).save(job.path)
    return job.path


async def serve(job: LiveJob, pipe: Connection) -> LiveTables:
    """One run, from a new engine to its tables. Says the port on which it listens, over `pipe`."""
    log = StepLog()
    clock, settings = WallClock(), in_turns(job.settings, log)
    engine = Engine(settings, clock)
    try:
        engine.start()
        await warm_up(engine.replicas.values())
        yardstick = None if job.yard_every_ns is None else Yardstick(job.settings, job.yard_every_ns)
        recorder = fresh_recorder(engine)
        log.clear()
        garbage.settle()
        session, share = Session(engine, job), core_share()
        listener = await asyncio.start_server(session.talk, "127.0.0.1", 0)
        pipe.send(listener.sockets[0].getsockname()[1])
        await session.begun.wait()
        if yardstick is not None:
            turns = settings.executor.options["turns"]
            await yardstick.note(log.readings, session.start_ns, turns, session.over)
        await session.over.wait()
        listener.close()
    finally:
        await clock.close()
        engine.close()
    zero_ns, requests = session.zero_ns, recorder.requests()
    requests["last_token_ns"] = pd.array(
        list(map(session.last_ns.get, requests["request_id"])), dtype="Int64"
    )
    return LiveTables(
        requests=shifted(requests, zero_ns),
        decisions=shifted(recorder.decisions(), zero_ns),
        log=log.since(session.start_ns),
        core_share=share,
    )


def core_share() -> float:
    """What this process gets of a core when it asks for all of it: 1 on a machine that does nothing else."""
    begun_ns, before_ns = stopwatch_ns(), processor_ns()
    while (took_ns := stopwatch_ns() - begun_ns) < LOOK_NS:
        pass
    return min(1.0, (processor_ns() - before_ns) / took_ns)


def in_turns(settings: EngineSettings, log: StepLog) -> EngineSettings:
    """The same engine, its replicas taking turns at the machine."""
    options = {"inner": settings.executor, "turns": asyncio.Lock(), "log": log}
    return replace(settings, executor=ExecutorSettings(name=LIVE, options=options))


async def warm_up(replicas: Iterable[Replica]) -> None:
    """Have torch and each replica do once what costs more the first time.

    Past the router, the quotas and the cache: whoever comes first finds them as new as in a simulation.
    """
    for replica in replicas:
        for length in WARM_UP_TOKENS:
            prompt = np.arange(length, dtype=np.int32)
            await replica.generate(Work(prompt, WARM_UP_ANSWER), Stream())


def fresh_recorder(engine: Engine) -> Recorder:
    """A new recorder instead of the one that has seen what does not count."""
    engine.telemetry.clear()
    made = Recorder()
    engine.telemetry.add(made)
    return made


def shifted(table: pd.DataFrame, zero_ns: int) -> pd.DataFrame:
    """The table with its times counted from another zero."""
    times = [name for name in table.columns if name.endswith("_ns")]
    table[times] = table[times] - zero_ns
    return table


class Session:
    """The talk with one load: who sends everything, and is told of everything."""

    def __init__(self, engine: Engine, job: LiveJob) -> None:
        self.begun, self.over = asyncio.Event(), asyncio.Event()
        self.zero_ns = 0  # the load's start, by the engine's clock
        self.start_ns = 0  # and by the stopwatch
        self.last_ns: dict[int, int] = {}  # of each request's tokens
        self._engine = engine
        self._job = job
        self._tasks: set[asyncio.Task[None]] = set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take requests until there are no more, then wait until all have ended."""
        with suppress(asyncio.IncompleteReadError):  # the load has gone
            while True:
                lengths = HEAD.unpack(await reader.readexactly(HEAD.size))
                columns = json.loads(await reader.readexactly(lengths[0]))
                tokens = await reader.readexactly(lengths[1])
                self._take(columns, tokens, writer)
        await asyncio.gather(*self._tasks)
        writer.close()
        self.over.set()
        self.begun.set()

    def _take(self, columns: dict[str, Any], tokens: bytes, writer: asyncio.StreamWriter) -> None:
        clock = self._engine.clock
        if "start_ns" in columns:
            self.start_ns = columns["start_ns"]
            self.zero_ns = clock.now_ns() + columns["start_ns"] - stopwatch_ns()
            for fault in self._job.faults:
                self._spawn(self._strike(fault))
            self.begun.set()
            return
        request = request_of(columns, tokens, clock.now_ns())
        self._spawn(self._serve(request, writer))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request, writer: asyncio.StreamWriter) -> None:
        stream = Stream()

        def tell_first() -> None:
            stream.listener = None
            writer.write(news(FIRST, request.id))

        stream.listener = tell_first
        outcome = "completed"
        try:
            await self._engine.serve(request, stream)
        except EngineError as error:
            outcome = error.outcome
        if stream.last_token_ns is not None:
            self.last_ns[request.id] = stream.last_token_ns
        writer.write(news(END, request.id, outcome))

    async def _strike(self, timed: TimedFault) -> None:
        clock = self._engine.clock
        await clock.sleep(max(0, self.zero_ns + to_ns(timed.at_s) - clock.now_ns()))
        self._engine.telemetry.emit(await timed.fault.strike(self._engine))

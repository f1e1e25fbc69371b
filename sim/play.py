"""`sim.run`: from override lines to a run folder."""

import json
import os
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import rmtree
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, cast

from engine.cache import tables
from engine.clock import NS_PER_S, stopwatch_ns
from engine.errors import BadSettings
from engine.telemetry import JsonLines, Meter
from engine.telemetry.context import TraceIds
from engine.telemetry.spans import Sampling, SpanBuilder
from engine.telemetry.traces import JsonTraces
from sim.beside import FOLDER as BESIDE
from sim.beside import ITSELF, settings_beside
from sim.config import RunSettings, read
from sim.facts import Facts
from sim.folder import RunFolder
from sim.names import check_names
from sim.progress import Progress
from sim.runs import SCHEMA_VERSION, Run
from sim.stage import Stage
from sim.ties import SHUFFLED, shuffle
from sim.traffic.fingerprint import fingerprint

if TYPE_CHECKING:
    from sim.recorder import Words

LIBRARIES = ("modelyard", "simpy", "numpy", "pandas", "hydra-core", "torch")


def run(scenario: str, overrides: Sequence[str] = (), *, progress: bool = False) -> Run:
    """Play a scenario and write its run folder.

    `overrides` are lines as on the command line: `["strategy=least_loaded", "seed=7"]`. Raises BadSettings before
    anything runs; checks that fail do not raise, they stand in `run.checks` and `run.verdict`. Ctrl-C ends the run
    early: what had finished by then is in the run, and in a folder that is still called `.partial`.
    """
    return play(read([f"scenario={scenario}", *overrides]), progress=progress)


def play(settings: RunSettings, *, progress: bool = False) -> Run:
    """Play what was configured, and what it asks for beside. See `run`."""
    return _on_stage(settings, settings_beside(settings, read), progress)


def _on_stage(settings: RunSettings, others: dict[str, list[RunSettings]] | None, progress: bool) -> Run:
    """Play one run; without `others` it is itself one beside another, and nobody checks it."""
    with settings.scenery() as engine:
        return _in_scenery(replace(settings, engine=engine), others, progress)


def _in_scenery(settings: RunSettings, others: dict[str, list[RunSettings]] | None, progress: bool) -> Run:
    check_names(settings.engine)
    stage = Stage(settings.engine, settings.draw(), settings.report.sample_every_s)
    if settings.ties == SHUFFLED:
        shuffle(stage.clock, settings.seed)
    try:
        for number, timed in enumerate(settings.faults):
            stage.at(timed.at_s, timed.fault, f"faults[{number}].replica")
        settings.story.script(stage, settings.scenario)
        name = f"{settings.scenario.name}_{_fingerprint(settings)}"
        folder = RunFolder(Path(settings.report.folder), name, with_spans=settings.report.spans)
        try:
            return _play(settings, stage, folder, others, progress)
        finally:
            folder.close()
    finally:
        stage.close()


def _play(
    settings: RunSettings,
    stage: Stage,
    folder: RunFolder,
    others: dict[str, list[RunSettings]] | None,
    progress: bool,
) -> Run:
    meter = Meter()
    meter.sources.append(stage.engine.figures)
    stage.engine.telemetry.add(JsonLines(folder.events))
    stage.engine.telemetry.add(meter)
    facts = Facts(evictions=settings.report.evictions)
    stage.engine.telemetry.add(facts)
    traces = _trace(stage, folder.spans, settings.seed) if folder.spans is not None else None
    begun_ns = stopwatch_ns()
    with Progress(stage.trace, shown=progress) as bar, interruptible(bar.stop):
        stage.play(bar.advance)
    if traces is not None:
        traces.flush()
    stage.sample()
    folder.told(meter.exposition())
    manifest = _manifest(settings, stage, stopwatch_ns() - begun_ns)
    recorder = stage.recorder
    run = Run(
        folder.path,
        settings.config,
        manifest,
        recorder.requests(),
        recorder.timeseries(),
        recorder.decisions(),
        facts=facts.table(),
    )
    measure = getattr(settings.story, "measure", None)
    if measure is not None and not stage.stopped:
        manifest["measured"] = measure(stage, settings.scenario)
    run.played_beside = {}
    if others and not stage.stopped:
        run.played_beside = _beside(run, others, progress)
    if others is not None:
        run.checks = list(settings.story.checks(run, settings.scenario))
    folder.write(run, settings.overrides, settings.report.plots)
    if not manifest["interrupted"]:
        run.path = folder.publish()
        for other in [other for played in run.played_beside.values() for other in played if other is not run]:
            other.path = run.path / other.path.relative_to(other.path.parents[2])
    return run


def _beside(run: Run, others: dict[str, list[RunSettings]], progress: bool) -> dict[str, list[Run]]:
    """Play the runs beside one, until Ctrl-C: then that one counts as interrupted.

    Raises BadSettings for what comes out only when one of them begins, and leaves no folder.
    """
    played: dict[str, list[Run]] = {ITSELF: [run]}
    for name, all_settings in others.items():
        for settings in all_settings:
            folder = run.path / BESIDE / name
            report = replace(settings.report, folder=str(folder), plots=False, spans=False)
            try:
                other = _on_stage(replace(settings, report=report), None, progress)
            except BadSettings as error:
                # as if nothing had run, like all that is wrong with settings
                rmtree(run.path, ignore_errors=True)
                where = f"on seed {settings.seed}" if name == ITSELF else f"beside.runs.{name}"
                raise type(error)(f"{where}: {error}") from error
            if other.manifest["interrupted"]:
                run.manifest["interrupted"] = True
                return played
            other.path = other.path.rename(folder / str(settings.seed))
            played.setdefault(name, []).append(other)
    return played


def _trace(stage: Stage, file: IO[bytes], seed: int) -> JsonTraces:
    """Have one trace a request written from now on, in virtual time."""
    traces = JsonTraces(file.write)
    ids = TraceIds(seed, stage.clock.epoch_ns)
    stage.engine.telemetry.add(SpanBuilder(traces.export, ids, Sampling()))
    return traces


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `stop`; a second one ends the program as ever. Only the main thread may do this."""

    def once(_number: int, _frame: FrameType | None) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, once)
    except ValueError:  # not the main thread: whoever runs us there also says when to stop
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _fingerprint(settings: RunSettings) -> str:
    """Eight digits that tell configurations apart, for the folder's name."""
    return sha256(json.dumps(settings.config, sort_keys=True).encode()).hexdigest()[:8]


def _manifest(settings: RunSettings, stage: Stage, wall_ns: int) -> dict[str, Any]:
    """What a reader needs to know of the run besides its tables. Wall-clock figures stand here and only here."""
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": settings.scenario.name,
        "seed": settings.seed,
        "overrides": settings.overrides,
        "executor": settings.engine.executor.name,
        "strategy": settings.engine.routing.strategy,
        "replicas": _replicas(settings, stage),
        "interrupted": stage.stopped,
        "digest": stage.recorder.digest(),
        "trace": {
            "source": stage.trace.source,
            "dropped_rows": stage.trace.dropped_rows,
            "fingerprint": fingerprint(stage.trace),
            **stage.trace.summary(),
        },
        "in_flight": stage.census.in_flight,
        "cache": tables(stage.engine.cache, stage.engine.carrier),
        "experiments": stage.engine.experiments.report(),
        "virtual_s": stage.clock.now_ns() / NS_PER_S,
        "busy_s": {name: replica.busy_ns / NS_PER_S for name, replica in stage.engine.replicas.items()},
        "steps": {name: replica.num_steps for name, replica in stage.engine.replicas.items()},
        "wall_s": wall_ns / NS_PER_S,
        "events": stage.events,
        "events_per_s": stage.events / (wall_ns / NS_PER_S),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {library: _version(library) for library in LIBRARIES},
    }


def _replicas(settings: RunSettings, stage: Stage) -> list[str]:
    """Those of the fleet's settings, and those of models that came into memory besides and served somebody."""
    served = cast("Words", stage.recorder.columns["replica"]).counts()
    return list(dict.fromkeys((*settings.engine.fleet.replicas, *served, *stage.engine.replicas)))


def _version(library: str) -> str | None:
    """Its version; None where it is not installed as a package (a source tree on the path, an executor left out)."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None

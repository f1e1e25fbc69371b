"""Five models are put into the folder of a running engine, and a sixth file that is no good. All are found at once.

The five are loaded and answer; the sixth is listed with what is wrong with it, and harms nobody.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np

from engine.clock import NS_PER_S, stopwatch_ns, to_ns
from engine.engine import Engine
from engine.errors import LoadFailed
from engine.registry import Health, Model, discover
from engine.settings import EngineSettings, above, at_least, require
from engine.stand_ins import make_stand_ins
from engine.stand_ins.full_size import write_reference
from engine.telemetry import Event
from sim.checks import Check, at_most, within
from sim.checks import at_least as no_less
from sim.runs import Run
from sim.stage import Stage
from sim.traffic import Trace

FOLDER, ASIDE = "models", "aside"
DAMAGED = "cut-short.gguf"
SUBJECT = "models folder"
LOOKS_EVERY_NS = 1_000_000
ROUNDS = 5


@dataclass
class Settings:
    """When files come, how many, and how soon what must be known of them."""

    name: str
    comes_at_s: float
    models: int
    whole_size: bool
    damaged_bytes: int
    asked_from_s: float
    max_scan_s: float
    max_known_s: float
    max_healthy_s: float

    def __post_init__(self) -> None:
        at_least("scenario.comes_at_s", self.comes_at_s, 0)
        at_least("scenario.models", self.models, 1)
        at_least("scenario.damaged_bytes", self.damaged_bytes, 1)
        later = self.asked_from_s > self.comes_at_s
        require("scenario.asked_from_s", self.asked_from_s, later, "after scenario.comes_at_s")
        for name in ("max_scan_s", "max_known_s", "max_healthy_s"):
            above(f"scenario.{name}", getattr(self, name), 0)


@dataclass(slots=True)
class FolderLookedAt(Event):
    """What is known of the folder's files: the models that are fine, and why the others are not."""

    kind: ClassVar[str] = "folder_looked_at"
    models: tuple[str, ...]
    damaged: dict[str, str | None]


@contextmanager
def scenery(settings: EngineSettings, s: Settings) -> Iterator[EngineSettings]:
    """An empty models folder, and beside it the files that will come into it; nothing is left of them afterwards."""
    folder = settings.models.folder
    require("models.folder", folder, folder is None, "null: the story has a folder of its own")
    with TemporaryDirectory(prefix="modelyard-") as place:
        here, aside = Path(place, FOLDER), Path(place, ASIDE)
        here.mkdir()
        aside.mkdir()
        written = write_reference(aside) if s.whole_size else make_stand_ins(aside)
        require("scenario.models", s.models, s.models <= len(written), f"at most {len(written)}")
        for path in written[s.models :]:
            path.unlink()
        with written[0].open("rb") as file:
            (aside / DAMAGED).write_bytes(file.read(s.damaged_bytes))
        yield replace(settings, models=replace(settings.models, folder=str(here)))


def traffic(trace: Trace, s: Settings) -> Trace:
    """Nobody asks before the files are there."""
    return replace(trace, arrival_ns=trace.arrival_ns + to_ns(s.asked_from_s))


def script(stage: Stage, s: Settings) -> None:
    every_s = stage.engine.settings.models.rescan_every_s
    require("models.rescan_every_s", every_s, every_s is not None, "given: nobody calls for a rescan")
    folder = stage.engine.settings.models.folder
    assert folder is not None, "the scenery has one"
    aside = Path(folder).parent / ASIDE
    names = [each.checkpoint.name for each in discover(aside).healthy if each.checkpoint is not None]
    trace = stage.trace
    trace.models = (*names, DAMAGED)
    trace.model_of = (np.arange(len(trace)) % len(trace.models)).astype(np.int32)
    stage.act(s.comes_at_s, partial(come, stage, aside, names))


async def come(stage: Stage, aside: Path, names: list[str], engine: Engine) -> Event:
    """The files get their names in the folder, all at once; then look until they are known, and have them loaded."""
    note, clock = stage.recorder.sample, engine.clock
    put(aside, aside.parent / FOLDER)
    note(clock.now_ns(), SUBJECT, "came", float(len(names)))
    while not all(name in {model.name for model in engine.registry.all()} for name in names):
        await clock.sleep(LOOKS_EVERY_NS)
    known = [engine.registry.find(name) for name in names]
    note(clock.now_ns(), SUBJECT, "known", float(sum(model.is_serviceable for model in known)))
    damaged = [model for model in engine.registry.all() if is_damaged(model)]
    note(clock.now_ns(), SUBJECT, "damaged", float(len(damaged)))
    for model in known:
        clock.spawn(load(engine, model.key))
    reasons = {model.name: model.reason for model in damaged}
    return FolderLookedAt(clock.now_ns(), tuple(model.key for model in known), reasons)


async def load(engine: Engine, key: str) -> None:
    """Bring a model into memory; when it fails, those who ask for it will be told."""
    with suppress(LoadFailed):
        await engine.lifecycle.load(key)


def put(aside: Path, folder: Path) -> None:
    """Move all files, each whole at once."""
    for path in sorted(aside.iterdir()):
        path.rename(folder / path.name)


def is_damaged(model: Model) -> bool:
    """Whether it is listed as no good, with the reason."""
    return model.state is Health.UNHEALTHY and bool(model.reason)


def measure(stage: Stage, _: Settings) -> dict[str, float]:
    """What it really takes to look at the whole folder, as if nothing of it were known: the median of some times."""
    folder = stage.engine.settings.models.folder
    assert folder is not None, "the scenery has one"
    taken_ns = []
    for _round in range(ROUNDS):
        begun_ns = stopwatch_ns()
        discover(Path(folder))
        taken_ns.append(stopwatch_ns() - begun_ns)
    return {"scan_s": sorted(taken_ns)[ROUNDS // 2] / NS_PER_S}


def checks(run: Run, s: Settings) -> Iterator[Check]:
    came_s = run.mark_s("came", SUBJECT)
    its = run.requests["model_requested"] == DAMAGED
    for_it, others = run.requests[its], run.requests[~its]
    served = others[others["outcome"] == "completed"]
    facts = run.facts[(run.facts["kind"] == "model_state_changed") & (run.facts["detail"] == "healthy")]
    healthy_ns = facts.groupby("subject")["at_ns"].min()
    last_s = int(healthy_ns.max()) / NS_PER_S if len(healthy_ns) >= s.models else None
    healthy_s = None if last_s is None or came_s is None else last_s - came_s

    scan_s = run.measured.get("scan_s")
    yield at_most("a scan of the whole folder, real s", scan_s, s.max_scan_s, published="500 ms")
    known_s = run.delay_s("known", SUBJECT, came_s)
    name = "from coming to known, virtual s, the wait for a rescan included"
    yield within(name, known_s, s.max_known_s, was_due=came_s is not None, published="500 ms")
    yield no_less("models known as fine", run.at_mark("known", "known", SUBJECT), s.models, published="5")
    name = "from coming until all are loaded and healthy, virtual s"
    yield within(name, healthy_s, s.max_healthy_s, was_due=came_s is not None, published="2 s")
    yield no_less("damaged files listed with a reason", run.at_mark("damaged", "known", SUBJECT), 1)
    yield at_most("requests for it that were served", int((for_it["outcome"] == "completed").sum()), 0)
    lost = len(others) - len(served)
    yield at_most("requests for the others that were not", lost, 0, f"n={len(others)}")
    yield no_less("models that served some", int(served["model"].nunique()), min(s.models, len(others)))

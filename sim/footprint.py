"""How much lives behind an object: what grows in an engine from hour to hour, though nobody asks more, is a leak."""

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import (
    BuiltinFunctionType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
    TracebackType,
)
from typing import Any, ClassVar

from engine.engine import Engine
from engine.telemetry import Event
from sim.traffic import Trace

LEFT_OUT = (
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    CodeType,
    FrameType,
    TracebackType,
    CoroutineType,
    GeneratorType,
    Trace,
)
"""What belongs to the program, or to a request on its way: behind functions lies everything."""


@dataclass(slots=True)
class Footprint(Event):
    """What an engine holds at a time. `objects` and `bytes` count each thing once; those in flight are beside it."""

    kind: ClassVar[str] = "footprint"
    objects: int
    bytes: int
    in_flight: int
    blocks: int
    sessions: int


def footprint(engine: Engine) -> Footprint:
    """Look at an engine as it is now: about a microsecond an object, and no virtual time.

    Without those who are told of it, its clock, and the sample that its cache keeps for its report: what is on record
    of a run grows with it, up to bounds of its own.
    """
    records = [engine.telemetry, engine.cache.sample]
    outside = [*records, engine.clock, *held_by(engine.clock), engine.settings]
    objects, num_bytes = reached([engine], without=outside)
    in_flight, sessions = engine.quotas.in_service, len(engine.router.sessions)
    return Footprint(engine.clock.now_ns(), objects, num_bytes, in_flight, len(engine.cache), sessions)


def held_by(owner: object) -> list[Any]:
    """What something has as its own; one that is compiled has no `__dict__`."""
    return list(vars(owner).values()) if hasattr(owner, "__dict__") else gc.get_referents(owner)


def reached(roots: Iterable[object], without: Iterable[object] = ()) -> tuple[int, int]:
    """How many objects, and bytes of theirs, can be reached from the roots without passing through others."""
    seen = {id(each) for each in without}
    waiting: list[Any] = [each for each in roots if id(each) not in seen]
    seen.update(map(id, waiting))
    objects = num_bytes = 0
    while waiting:
        each = waiting.pop()
        objects += 1
        num_bytes += sys.getsizeof(each)
        for behind in gc.get_referents(each):
            if id(behind) not in seen and not isinstance(behind, LEFT_OUT):
                seen.add(id(behind))
                waiting.append(behind)
    return objects, num_bytes

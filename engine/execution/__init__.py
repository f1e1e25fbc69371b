"""Serving on one device: a scheduler forms batches, an executor runs them, a replica keeps both going."""

from engine.execution.executor import (
    Batch,
    Chunk,
    Executor,
    KVBlock,
    Machine,
    Sequence,
    StepResult,
    executors,
)
from engine.execution.grammar import Compiled, Grammars, Spelling
from engine.execution.loops import LEAP_STEPS
from engine.execution.modelled import Modelled, spoken
from engine.execution.replica import Answer, Replica, Work
from engine.execution.scheduler import Scheduler

__all__ = [
    "LEAP_STEPS",
    "Answer",
    "Batch",
    "Chunk",
    "Compiled",
    "Executor",
    "Grammars",
    "KVBlock",
    "Machine",
    "Modelled",
    "Replica",
    "Scheduler",
    "Sequence",
    "Spelling",
    "StepResult",
    "Work",
    "executors",
    "spoken",
]

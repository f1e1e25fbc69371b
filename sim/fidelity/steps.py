"""Steps as a cost model of their own: fitted to the steps of calibration runs, where no profile is wanted."""

from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.execution import Batch, Chunk, Machine, Modelled, Sequence, executors
from engine.execution.modelled import Durations
from engine.execution.terms import TERMS, counts, counts_ahead, counts_of_prefill
from engine.request import Stream
from engine.settings import Architecture, EngineSettings, ExecutorSettings, ModelSettings
from sim.fidelity.steplog import Shape, Step
from sim.least_squares import relative
from sim.world import NOBODYS

FITTED = "twin_steps"
"""What the executor is called."""

KV_BYTES = 4.0  # of a number: the torch executor computes in float32 unless it is told otherwise


def fitted(steps: Listing[Step], models: Listing[str]) -> dict[str, ExecutorSettings]:
    """A cost model for each model from its steps: least squares of relative errors, no negative cost."""
    made = {}
    for name in models:
        own = [step for step in steps if step.model == name and step.duration_ns > 0]
        rows = np.array([counts(batch_of(step.shape)) for step in own], dtype=np.float64)
        times = np.array([step.duration_ns for step in own], dtype=np.float64)
        costs = relative(rows, times) if own else np.zeros(len(TERMS))
        made[name] = ExecutorSettings(name=FITTED, options={"costs_ns": costs.tolist()})
    return made


def batch_of(shape: Shape) -> Batch:
    """A batch of that shape, of sequences without content."""
    chunks = [
        Chunk(_sequence(prompt_tokens, computed, cached), num_tokens)
        for computed, cached, prompt_tokens, num_tokens in shape.chunks
    ]
    return Batch(chunks, [_sequence(prompt_tokens, computed, 0) for computed, prompt_tokens in shape.decodes])


def _sequence(prompt_tokens: int, computed: int, cached: int) -> Sequence:
    tokens = np.zeros(prompt_tokens, dtype=np.int32)
    return Sequence(0, tokens, 1, Stream(), NOBODYS, cached_tokens=cached, computed_tokens=computed)


@dataclass(slots=True, kw_only=True)
class FittedOptions:
    """A cost in ns for each of `TERMS`, and the KV that a replica has room for."""

    costs_ns: list[float]
    kv_capacity_tokens: int = 131_072


@executors(FITTED)
class FittedSteps(Modelled):
    """A replica whose steps take the sum of their terms."""

    Options: ClassVar[type[Any]] = FittedOptions

    def __init__(self, machine: Machine, options: FittedOptions) -> None:
        super().__init__(machine.clock)
        shape = architecture_of(machine.model)
        self.vocab = shape.vocab
        self.context_tokens = shape.context_tokens
        self.kv_capacity_tokens = options.kv_capacity_tokens
        self.kv_value_bytes = KV_BYTES
        self.kv_bytes_per_token = round(shape.kv_values_per_token * KV_BYTES)
        self._costs = options.costs_ns

    def duration_ns(self, batch: Batch) -> int:
        return self._sum(counts(batch))

    def decode_ns(self, batch: Batch, steps: int) -> Durations:
        units = counts_ahead(batch.decodes, steps).T.tolist()
        return np.array([self._sum(each) for each in units], dtype=np.int64)

    def prefill_ns(self, start: int, end: int) -> int:
        return self._sum(counts_of_prefill(start, end))

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: Any) -> int:
        return round(architecture_of(model).parameters * KV_BYTES)

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int:
        return architecture_of(model).vocab

    def _sum(self, units: Listing[float]) -> int:
        return max(1, round(sum(cost * count for cost, count in zip(self._costs, units, strict=True))))


def architecture_of(model: ModelSettings) -> Architecture:
    """What the torch executor runs of a model that has no weights of its own."""
    shape = model.stand_in or model.architecture
    assert shape is not None, "a model without an architecture has been refused"
    return shape


def models_of(settings: EngineSettings) -> list[str]:
    """The models that have a replica."""
    return list(dict.fromkeys(settings.fleet.replicas.values()))

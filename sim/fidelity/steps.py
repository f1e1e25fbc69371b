"""Steps as a cost model of their own: fitted to the steps of the calibration run, where no profile is wanted."""

from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from engine.execution import Batch, Machine, Modelled, executors
from engine.settings import Architecture, EngineSettings, ExecutorSettings, ModelSettings
from sim.fidelity.device import Shape, Step, shape_of

FITTED = "twin_steps"
"""What the executor is called."""

Floats = npt.NDArray[np.float64]

TERMS = (
    "a step",
    "a step with prefill",
    "a chunk",
    "a token of prefill",
    "a token of prefill by its context",
    "a step that decodes",
    "a sequence that decodes",
    "a token of context of those",
)
KV_BYTES = 4.0  # of a number: the torch executor computes in float32 unless it is told otherwise


def terms(shape: Shape) -> tuple[float, ...]:
    """What a step's time is made of, in the order of `TERMS`."""
    tokens = pairs = 0
    for computed, _, _, new in shape.chunks:
        tokens += new
        pairs += new * computed + new * (new + 1) // 2
    decodes, context = len(shape.decodes), sum(shape.decodes)
    return (
        1.0,
        float(bool(shape.chunks)),
        len(shape.chunks),
        tokens,
        pairs,
        float(decodes > 0),
        decodes,
        context,
    )


def fitted(steps: Listing[Step], models: Listing[str]) -> dict[str, ExecutorSettings]:
    """A cost model for each model from its steps: least squares of relative errors, no negative cost."""
    made = {}
    for name in models:
        own = [step for step in steps if step.model == name]
        rows = np.array([terms(step.shape) for step in own], dtype=np.float64).reshape(len(own), len(TERMS))
        times = np.array([step.duration_ns for step in own], dtype=np.float64)
        made[name] = ExecutorSettings(name=FITTED, options={"costs_ns": relative_fit(rows, times).tolist()})
    return made


def relative_fit(rows: Floats, times: Floats) -> Floats:
    """Costs that make the sum of squared relative errors least; zero where nothing was measured."""
    if not len(rows):
        return np.zeros(rows.shape[1])
    weights = 1 / np.maximum(times, 1.0)
    return non_negative(rows * weights[:, None], times * weights)


def non_negative(rows: Floats, values: Floats) -> Floats:
    """Least squares without negative costs: what would be negative leaves, the most negative first."""
    costs = np.zeros(rows.shape[1])
    sizes = np.sqrt((rows**2).sum(axis=0))
    kept = [column for column in range(rows.shape[1]) if sizes[column] > 0]
    while kept:
        found = np.linalg.lstsq(rows[:, kept] / sizes[kept], values, rcond=None)[0]
        if (found >= 0).all():
            costs[kept] = found / sizes[kept]
            break
        del kept[int(found.argmin())]
    return costs


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
        return self._sum(terms(shape_of(batch)))

    def decode_ns(self, batch: Batch, steps: int) -> "npt.NDArray[np.int64]":
        decodes = shape_of(batch).decodes
        shapes = (Shape((), tuple(each + ahead for each in decodes)) for ahead in range(steps))
        return np.array([self._sum(terms(shape)) for shape in shapes], dtype=np.int64)

    def prefill_ns(self, start: int, end: int) -> int:
        return self._sum(terms(Shape(((start, start, end, end - start),), ())))

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: Any) -> int:
        return round(architecture_of(model).parameters * KV_BYTES)

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int:
        return architecture_of(model).vocab

    def _sum(self, values: tuple[float, ...]) -> int:
        return max(1, round(sum(cost * value for cost, value in zip(self._costs, values, strict=True))))


def architecture_of(model: ModelSettings) -> Architecture:
    """What the torch executor runs of a model that has no weights of its own."""
    shape = model.stand_in or model.architecture
    assert shape is not None, "a model without an architecture has been refused"
    return shape


def models_of(settings: EngineSettings) -> list[str]:
    """The models that have a replica."""
    return list(dict.fromkeys(settings.fleet.replicas.values()))

"""The host's costs: what the real engine does around its steps, from a log of a run that is not compared."""

from collections.abc import Sequence as Listing

import numpy as np
import numpy.typing as npt

from engine.errors import BadSettings
from engine.execution import Batch, Chunk, Machine, Modelled, Sequence
from engine.request import Stream
from engine.settings import EngineSettings, ExecutorSettings
from sim.fidelity.device import HostCosts, Shape, Step, StepLog, make_inner
from sim.fidelity.steps import non_negative
from sim.world import SimClock

Floats = npt.NDArray[np.float64]

FEWEST_STEPS = 50
MOST_RATIOS = 4_096


def host_costs(log: StepLog, predicted_ns: Floats, answer_ns: float) -> HostCosts:
    """Costs that make a cost model's steps those of the log, in the mean and in their spread.

    `predicted_ns`: what the cost model says of each step of the log, which is of one replica. Raises BadSettings when
    there are too few steps to tell.
    """
    if len(log.steps) < FEWEST_STEPS:
        raise BadSettings(
            f"the calibration run had {len(log.steps)} steps, but needs at least {FEWEST_STEPS}"
        )
    durations = np.array([step.duration_ns for step in log.steps], dtype=np.float64)
    scale = float(durations.sum() / predicted_ns.sum())
    ratios = durations / (predicted_ns * scale)
    prefills = np.array([step.shape.has_prefill for step in log.steps])
    step_ns, begin_ns, retire_ns = gap_costs(log)
    return HostCosts(
        step_ns=step_ns,
        begin_ns=begin_ns,
        retire_ns=retire_ns,
        answer_ns=answer_ns,
        scale=scale,
        decode_ratios=pool(ratios[~prefills]),
        prefill_ratios=pool(ratios[prefills]),
    )


def pool(ratios: Floats) -> Floats:
    """Ratios to draw from, the last so many; 1 where there are none."""
    return ratios[-MOST_RATIOS:] if len(ratios) else np.ones(1)


def gap_costs(log: StepLog) -> tuple[float, float, float]:
    """What lies between two steps that follow at once, in ns: always, for who begins, for who has left.

    A step follows at once when it has to do for somebody who was there before it.
    """
    left = np.bincount(np.array(log.retired, dtype=np.int64), minlength=len(log.steps) + 1)
    rows, gaps = [], []
    for number, (step, after) in enumerate(zip(log.steps, log.steps[1:], strict=False), 1):
        shape = after.shape
        if shape.decodes or shape.beginners < len(shape.chunks):
            rows.append((1, shape.beginners, int(left[number])))
            gaps.append(after.begun_ns - step.begun_ns - step.duration_ns)
    if not rows:
        return 0.0, 0.0, 0.0
    costs = non_negative(np.array(rows, dtype=np.float64), np.array(gaps, dtype=np.float64))
    return float(costs[0]), float(costs[1]), float(costs[2])


def predictions(
    steps: Listing[Step], settings: EngineSettings, models: dict[str, ExecutorSettings]
) -> Floats:
    """What the cost models say of each step, in ns."""
    cost_models = {
        model.name: make_inner(models[model.name], Machine(model, settings.hardware, SimClock(), 1, 0))
        for model in settings.fleet.models
        if model.name in models
    }
    predicted = []
    for step in steps:
        model = cost_models[step.model]
        assert isinstance(model, Modelled), "a cost model foresees"
        predicted.append(model.duration_ns(batch_of(step.shape)))
    return np.array(predicted, dtype=np.float64)


def batch_of(shape: Shape) -> Batch:
    """A batch of that shape, of sequences without content."""
    chunks = [
        Chunk(_sequence(prompt_tokens, computed, cached), num_tokens)
        for computed, cached, prompt_tokens, num_tokens in shape.chunks
    ]
    return Batch(chunks, [_sequence(computed, computed, 0) for computed in shape.decodes])


def _sequence(prompt_tokens: int, computed: int, cached: int) -> Sequence:
    tokens = np.zeros(prompt_tokens, dtype=np.int32)
    done = SimClock().signal()
    return Sequence(0, tokens, 1, Stream(), done, cached_tokens=cached, computed_tokens=computed)

"""Fitting: how much longer the steps of calibration runs took than cost models say of them."""

from collections.abc import Sequence as Listing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.execution import Machine, Modelled
from engine.settings import EngineSettings, ExecutorSettings
from sim.fidelity.device import make_inner
from sim.fidelity.factors import Before, ByCount, Line, ModelFactors, Scales, class_of
from sim.fidelity.steplog import Step, StepLog
from sim.fidelity.steps import batch_of
from sim.fidelity.track import Track
from sim.least_squares import Floats
from sim.world import SimClock

FEWEST_STEPS = 50  # of a model and a kind
FEWEST_ALIKE = 30  # steps; fewer take the factor of those that are most like them
ROUNDS = 10  # of fitting each kind of factor to what the others leave

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

PREFILL, DECODE, COLD_DECODE = range(len(Scales._fields))


@dataclass(slots=True, kw_only=True)
class Seen:
    """Steps as they were seen, a row each."""

    took_ns: Floats
    said_ns: Floats  # by the cost model, at the machine's pace
    model: Counts  # its number
    kind: Counts  # the place among `Scales`
    chunk_tokens: Counts
    decoded: Counts  # `Before.decoded`
    decodes: Counts


def step_factors(
    logs: Listing[StepLog],
    settings: EngineSettings,
    models: dict[str, ExecutorSettings],
    tracks: Listing[Track] = (),
) -> dict[str, ModelFactors]:
    """The factors by which cost models meet the sums of all steps that are alike in one way, by the model's name.

    Each log is at the pace of its track, where there are any.

    Iterative proportional fitting (Deming and Stephan, 1940): each kind of factor in turn to what the others leave.
    A model of which few steps are alike has there the factor that all models have together.
    """
    seen = steps_seen(logs, settings, models, tracks or [Track()] * len(logs))
    one = np.ones(len(seen.took_ns))
    ways: dict[str, tuple[Flags, Counts]] = {
        "prefill_sizes": (seen.kind == PREFILL, seen.chunk_tokens),
        "decode_ages": (seen.kind == DECODE, seen.decoded),
        "decode_crowds": (seen.kind != PREFILL, seen.decodes),
    }
    found = [ModelFactors() for _ in models]
    factors = {"scales": one, **dict.fromkeys(ways, one)}
    for _ in range(ROUNDS):
        scales = model_scales(seen, product(seen.said_ns, factors, "scales"), len(models))
        factors["scales"] = scales[seen.model, seen.kind]
        for model, own in zip(found, scales.tolist(), strict=True):
            model.scales = Scales(*own)
        for name, (chosen, counts) in ways.items():
            said_ns, factors[name] = product(seen.said_ns, factors, name), one.copy()
            together = by_count(counts[chosen], seen.took_ns[chosen], said_ns[chosen])
            for number, model in enumerate(found):
                own = chosen & (seen.model == number)
                alone = by_count(counts[own], seen.took_ns[own], said_ns[own])
                made = ByCount(together.factors | alone.factors)
                setattr(model, name, made)
                factors[name][own] = [made.factor(count) for count in counts[own].tolist()]
    return dict(zip(models, found, strict=True))


def product(said_ns: Floats, factors: dict[str, Floats], but: str) -> Floats:
    """What is said times all factors but those."""
    whole: Floats = said_ns * np.prod([each for name, each in factors.items() if name != but], axis=0)
    return whole


def steps_seen(
    logs: Listing[StepLog],
    settings: EngineSettings,
    models: dict[str, ExecutorSettings],
    tracks: Listing[Track],
) -> Seen:
    """The steps of some logs, each with its track."""
    number_of = {name: number for number, name in enumerate(models)}
    rows, said = [], []
    for log, track in zip(logs, tracks, strict=True):
        begun_ns = np.array([step.begun_ns for step in log.steps], dtype=np.float64)
        said.append(predictions(log.steps, settings, models) * track.over(begun_ns))
        for step, before in zip(log.steps, in_line(log.steps), strict=True):
            cold = COLD_DECODE if before.is_switch else DECODE
            place, shape = PREFILL if step.shape.has_prefill else cold, step.shape
            sizes = shape.chunk_tokens, before.decoded, len(shape.decodes)
            rows.append((number_of[step.model], place, *sizes, step.duration_ns))
    model, kind, chunk_tokens, decoded, decodes, took_ns = np.array(rows, dtype=np.int64).reshape(-1, 6).T
    return Seen(
        took_ns=took_ns.astype(np.float64),
        said_ns=np.concatenate(said),
        model=model,
        kind=kind,
        chunk_tokens=chunk_tokens,
        decoded=decoded,
        decodes=decodes,
    )


def in_line(steps: Listing[Step]) -> list[Before]:
    """What each step of a log finds."""
    line = Line()
    return [line.step(step.model, step.shape) for step in steps]


def model_scales(seen: Seen, said_ns: Floats, models: int) -> Floats:
    """How much longer each model's steps of each kind took than is said, all together: (models, kinds).

    Few steps of a kind count as all steps of the model, and where these are few too, as those of all models.
    """
    at, shape = seen.model * len(Scales._fields) + seen.kind, (models, len(Scales._fields))
    counts, took, said = (
        np.bincount(at, weights=weights, minlength=shape[0] * shape[1]).reshape(shape)
        for weights in (None, seen.took_ns, said_ns)
    )
    overall = took.sum() / max(1.0, said.sum()) or 1.0
    is_known = (counts.sum(axis=1) >= FEWEST_STEPS) & took.any(axis=1)
    whole = np.where(is_known, took.sum(axis=1) / np.maximum(said.sum(axis=1), 1.0), overall)
    enough = (counts >= FEWEST_STEPS) & (took > 0)
    scales: Floats = np.where(enough, took / np.maximum(said, 1.0), whole[:, None])
    return scales


def by_count(counts: Counts, took_ns: Floats, said_ns: Floats) -> ByCount:
    """What steps took over what is said of them, by a count; nothing of those of which there are few."""
    classes = np.array([class_of(count) for count in counts.tolist()], dtype=np.int64)
    sums = (np.bincount(classes, weights=weights) for weights in (None, took_ns, said_ns))
    return ByCount(
        {
            each: float(took / max(1.0, said))
            for each, (count, took, said) in enumerate(zip(*sums, strict=True))
            if count >= FEWEST_ALIKE and took
        }
    )


def predictions(
    steps: Listing[Step],
    settings: EngineSettings,
    models: dict[str, ExecutorSettings],
    factors: dict[str, ModelFactors] | None = None,
) -> Floats:
    """What the cost models say of each step, in ns, times its factors."""
    cost_models = {
        model.name: make_inner(models[model.name], Machine(model, settings.hardware, SimClock(), 1, 0))
        for model in settings.fleet.models
        if model.name in models
    }
    predicted = []
    for step, before in zip(steps, in_line(steps), strict=True):
        model = cost_models[step.model]
        assert isinstance(model, Modelled), "a cost model foresees"
        factor = 1.0 if factors is None else factors[step.model].of(step.shape, before)
        predicted.append(model.duration_ns(batch_of(step.shape)) * factor)
    return np.array(predicted, dtype=np.float64)

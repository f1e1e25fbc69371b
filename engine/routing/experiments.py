"""A/B experiments: who is in which arm, for ever the same, and what came of it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from math import isinf, log
from typing import Any

from xxhash import xxh3_64_intdigest

from engine.clock import to_ns
from engine.figures import Figure, Values
from engine.request import Request
from engine.routing.comparison import Running, compare, mismatch_p_value
from engine.settings import ExperimentSettings

WORD = 1 << 64
UNIT_BITS = 1 << 16
METRICS = {"ttft_s": False, "e2e_s": False, "hit_ratio": True, "completed": True}
"""What is compared between arms, and whether more of it is better."""


class Arm:
    """A side of an experiment: where its requests go, how many units and requests it got, what was seen of them."""

    __slots__ = ("_bits", "_num_bits", "experiment", "label", "name", "num_requests", "seen", "target")

    def __init__(self, experiment: str, name: str, target: str) -> None:
        self.experiment = experiment
        self.name = name
        self.target = target
        self.label = f"{experiment}/{name}"
        self.num_requests = 0
        self.seen = {metric: Running() for metric in METRICS}
        self._bits = bytearray(UNIT_BITS // 8)
        self._num_bits = 0

    def note(self, place: int) -> None:
        """A request of the unit with that hash."""
        self.num_requests += 1
        bit = place & (UNIT_BITS - 1)
        if not self._bits[bit >> 3] & (1 << (bit & 7)):
            self._bits[bit >> 3] |= 1 << (bit & 7)
            self._num_bits += 1

    @property
    def num_units(self) -> int:
        """About how many units there were: linear counting, to 1 % for 100,000 (Whang et al., TODS 1990)."""
        if self._num_bits >= UNIT_BITS:
            return UNIT_BITS * 16
        return round(-UNIT_BITS * log(1 - self._num_bits / UNIT_BITS))


class Experiment:
    """One split. A unit's place in 0 to 1 is a hash of it and the salt; arms are intervals in it, in their order.

    So the same unit is in the same arm in every process, and changing a weight moves only the boundary: units change
    arms in one direction.
    """

    __slots__ = ("_bounds", "_from_ns", "_salt", "_seed", "_steps", "arms", "settings", "weights")

    def __init__(self, settings: ExperimentSettings) -> None:
        self.settings = settings
        self.arms = [Arm(settings.name, arm.name, arm.target) for arm in settings.arms]
        self._seed = xxh3_64_intdigest((settings.salt or settings.name).encode("utf-8", "surrogatepass"))
        self._steps = [(to_ns(step.at_s), step.weights) for step in settings.ramp]
        self._from_ns = self._steps[0][0] if self._steps else 1 << 62
        self.weights: list[float] = []
        self._bounds: list[int] = []
        self.set_weights([arm.weight for arm in settings.arms])

    def set_weights(self, weights: list[float]) -> None:
        """Other shares from now on."""
        self.weights, upto, total = weights, [], 0.0
        for weight in weights:
            total += weight
            upto.append(round(total * WORD))
        upto[-1] = WORD
        self._bounds = upto

    def assign(self, request: Request, now_ns: int) -> Arm:
        """The arm of a request, which is counted. O(arms)."""
        arm, place = self.find(request, now_ns)
        arm.note(place)
        return arm

    def find(self, request: Request, now_ns: int) -> tuple[Arm, int]:
        """The arm of a request, and the hash of its unit; nothing is counted."""
        if now_ns >= self._from_ns:
            self._climb(now_ns)
        unit = self.settings.unit
        if unit == "session" and request.session is not None:
            text = request.session
        elif unit == "request":
            text = str(request.id)
        else:
            text = request.tenant
        place = xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), self._seed)
        for number, bound in enumerate(self._bounds):
            if place < bound:
                return self.arms[number], place
        return self.arms[-1], place  # pragma: no cover  the last bound is above every place

    def _climb(self, now_ns: int) -> None:
        """Take the steps of the ramp that have come."""
        while self._steps and now_ns >= self._steps[0][0]:
            _, weights = self._steps.pop(0)
            self.set_weights(weights)
        self._from_ns = self._steps[0][0] if self._steps else 1 << 62


class Experiments:
    """All experiments, by the name that requests ask for."""

    def __init__(self, several: Iterable[ExperimentSettings]) -> None:
        self._on = {settings.on: Experiment(settings) for settings in several}
        self._arms = {arm.label: arm for each in self._on.values() for arm in each.arms}

    def __len__(self) -> int:
        return len(self._on)

    def all(self) -> list[Experiment]:
        """Each of them, in the order of the settings."""
        return list(self._on.values())

    def assign(self, request: Request, now_ns: int) -> Arm | None:
        """The arm of a request, None where nobody experiments on the name that it asks for. O(1)."""
        experiment = self._on.get(request.model)
        return None if experiment is None else experiment.assign(request, now_ns)

    def target(self, request: Request, now_ns: int) -> str:
        """The name that a request would be sent to: its own, or its arm's. Nothing is counted."""
        experiment = self._on.get(request.model)
        return request.model if experiment is None else experiment.find(request, now_ns)[0].target

    def observe(self, label: str, *, completed: bool, **metrics: float) -> None:
        """What came of a request in that arm. Latencies and hits count where there was an answer."""
        seen = self._arms[label].seen
        seen["completed"].add(float(completed))
        for metric, value in metrics.items():
            seen[metric].add(value)

    def figures(self) -> Iterator[Figure]:
        """Requests and units of each arm, and the arms' weights."""
        requests: Values = {}
        units: Values = {}
        weights: Values = {}
        for each in self._on.values():
            for arm, weight in zip(each.arms, each.weights, strict=True):
                names = (arm.experiment, arm.name)
                requests[names], units[names] = float(arm.num_requests), float(arm.num_units)
                weights[names] = weight
        labels = ("experiment", "arm")
        yield Figure("modelyard:experiment_requests", "Requests in an arm.", labels, requests)
        yield Figure(
            "modelyard:experiment_units", "Sessions, tenants or requests.", labels, units, is_gauge=True
        )
        yield Figure("modelyard:experiment_weight", "The share asked for.", labels, weights, is_gauge=True)

    def set_weights(self, name: str, weights: list[float]) -> None:
        """Other shares for an experiment from now on; units move over one boundary only. Raises KeyError."""
        next(each for each in self._on.values() if each.settings.name == name).set_weights(weights)

    def report(self) -> dict[str, Any]:
        """Arms, comparisons of each with the first, and whether shares are those that were asked for: for JSON."""
        return {each.settings.name: _report(each) for each in self._on.values()}


def _report(experiment: Experiment) -> dict[str, Any]:
    settings, arms = experiment.settings, experiment.arms
    counts = [arm.num_units for arm in arms]
    found: dict[str, Any] = {
        "on": settings.on,
        "unit": settings.unit,
        "arms": {
            arm.name: {
                "target": arm.target,
                "weight": weight,
                "requests": arm.num_requests,
                "units": arm.num_units,
                **{metric: running.mean for metric, running in arm.seen.items() if running.count},
            }
            for arm, weight in zip(arms, experiment.weights, strict=True)
        },
        "share_mismatch_p_value": mismatch_p_value(counts, experiment.weights),
        "comparisons": {},
    }
    first = arms[0]
    for arm in arms[1:]:
        compared = found["comparisons"][f"{arm.name} against {first.name}"] = {}
        for metric, better in METRICS.items():
            result = compare(first.seen[metric], arm.seen[metric], settings.alpha, more_is_better=better)
            names = {"a is better": f"{first.name} is better", "b is better": f"{arm.name} is better"}
            verdict = names.get(result.verdict, result.verdict)
            compared[metric] = {
                **_finite(asdict(result)),
                "difference": result.difference,
                "verdict": verdict,
            }
    return found


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: what is not known yet is null."""
    return {
        name: None if isinstance(value, float) and isinf(value) else value for name, value in values.items()
    }

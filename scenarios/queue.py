"""A queue and a server, or several: the bare system, held against queueing theory where there is a formula."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.settings import above
from sim import queueing
from sim.checks import Check, all_completed, at_most
from sim.intervals import t_quantile
from sim.runs import Run
from sim.stage import Stage
from sim.stats import BATCHES, batch_means

Values = npt.NDArray[np.float64]
Options = dict[str, Any]

ROUNDS = 10  # of each user in a closed loop, before it has forgotten how it began
RARE = 1e-6
"""How often somebody may have to wait for a place at a server that all share, and it is still one that all share."""
MOMENTS: dict[str, queueing.Moments] = {
    "exponential": queueing.EXPONENTIAL,
    "deterministic": (1.0, 1.0, 1.0),
    "uniform": (4 / 3, 2.0, 16 / 5),
    "erlang2": (1.5, 3.0, 7.5),
}


@dataclass
class Settings:
    """How far from theory a mean may be."""

    name: str
    max_errors: float

    def __post_init__(self) -> None:
        above("scenario.max_errors", self.max_errors, 0)


def script(stage: Stage, s: Settings) -> None:
    """Nothing happens."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    whole = run.whole
    if run.config["fleet"]["queue_capacity"] is None:
        yield all_completed(whole)
    for known in theories(run.config, len(run.replicas)):
        yield held_against(known, settled(run, known), s.max_errors)


@dataclass(frozen=True, slots=True)
class Theory:
    """A mean that has a formula: of what, its value, and the standard error that a mean of so many has at least.

    `is_exact`: it has no more, and need not be told from the values, which hang together over more of them than they
    show. `priority`: of the requests that have it alone.
    """

    figure: str
    value: float
    error_of: Callable[[int], float]
    is_exact: bool = False
    priority: int | None = None


def theories(config: Options, replicas: int) -> list[Theory]:
    """What is known of the system that was played.

    Only one replica, the servers of which stand before one line: several lines have no formula for every strategy;
    tests/sim/test_queueing.py has those that do.
    """
    work, fleet, executor = config["workload"], config["fleet"], config["executor"]
    is_bare = not (config["health"]["enabled"] or config["quotas"]["enabled"] or config["faults"])
    if not is_bare or replicas != 1 or executor["name"] != "law":
        return []
    if work["kind"] == "generated":
        return theories_by_class(work, fleet, executor)
    known = None
    if work["kind"] == "closed":
        known = closed_theory(work, fleet, executor)
    elif work["kind"] == "synthetic":
        known = open_theory(work, fleet, executor)
    return [] if known is None else [known]


def theories_by_class(work: Options, fleet: Options, executor: Options) -> list[Theory]:
    """Poisson arrivals in classes, of which the first do not wait for the last."""
    is_single = fleet["max_batch"] == 1 and fleet["queue_capacity"] is None
    is_plain = not (work["arrivals"]["curve"] or work["arrivals"]["flashes"] or work["tenants"]["cv_median"])
    is_poisson = work["arrivals"]["family"] == "poisson" and work["sessions"]["mean_turns"] == 1 and is_plain
    classes = sorted((-each.get("priority", 0), each["share"]) for each in work["classes"] if each["share"])
    a, of = work["rate"] * executor["mean_s"], [-rank for rank, _ in classes]
    formulas = {"priority": queueing.waits_by_class, "preemptive": queueing.sojourns_by_class}
    formula = formulas.get(fleet["discipline"])
    if formula is None or not is_single or not is_poisson or a >= 1 or len(dict.fromkeys(of)) < len(of):
        return []
    mean_s, shares = executor["mean_s"], [share for _, share in classes]
    loads = [a * share / sum(shares) for share in shares]
    figure = "wait" if fleet["discipline"] == "priority" else "sojourn"
    values, unevenness = formula(loads, scv_of(executor)), queueing.unevenness(a, moments_of(executor))
    return [
        Theory(
            figure,
            mean_s * value,
            errors(mean_s * value, unevenness * queueing.spread_by_class(loads, k)),
            priority=each,
        )
        for k, (each, value) in enumerate(zip(of, values, strict=True))
    ]


def closed_theory(work: Options, fleet: Options, executor: Options) -> Theory | None:
    """Users who think before one server."""
    is_memoryless = executor["law"] == work["think"] == "exponential"
    if not is_memoryless or fleet["max_batch"] != 1 or fleet["queue_capacity"] is not None:
        return None
    mean_s, users = executor["mean_s"], work["users"]
    think = work["think_s"] / mean_s
    error_of = errors(mean_s, queueing.spread_closed(users, think))
    return Theory(
        "sojourn",
        mean_s * queueing.sojourn_closed(users, think),
        lambda count: error_of(count) if count >= ROUNDS * users else inf,  # they all begin with a thought
    )


def open_theory(work: Options, fleet: Options, executor: Options) -> Theory | None:
    """Poisson arrivals before one server or several, with or without a bound, or before one that all share."""
    mean_s, servers, waiting = executor["mean_s"], fleet["max_batch"], fleet["queue_capacity"]
    a, is_memoryless = work["rate"] * mean_s, executor["law"] == "exponential"
    lasting = max(1.0, (1 + scv_of(executor)) / 2)
    found = None
    if fleet["discipline"] == "ps":
        if a < 1 and waiting is None and a**servers < RARE:
            value = mean_s * queueing.sojourn_shared(a)
            found = Theory("sojourn", value, errors(mean_s, lasting * queueing.spread_of_sharing(a)))
    elif waiting is not None:
        if is_memoryless or waiting == 0:
            places = servers + waiting
            spread = queueing.spread_of_refusals(servers, places, a)
            found = Theory("refused", queueing.turned_away(servers, places, a), errors(1.0, lasting * spread))
    elif servers > 1:
        if is_memoryless and a < servers:
            value = mean_s * queueing.wait_of_many(servers, a)
            found = Theory("wait", value, errors(mean_s, queueing.spread_of_waits(servers, a)))
    elif a < 1:
        value = mean_s * queueing.wait_of_one(a, scv_of(executor))
        spread = queueing.spread_of_one(a, moments_of(executor))
        found = Theory("wait", value, errors(mean_s, spread), is_exact=True)
    return found


def errors(mean_s: float, spread: float) -> Callable[[int], float]:
    """The standard error of a mean of so many, by how much it varies in mean service times."""
    return lambda count: mean_s * sqrt(spread / count)


def scv_of(executor: Options) -> float:
    """The squared coefficient of variation of the service times."""
    return float(executor["scv"] if executor["law"] == "lognormal" else MOMENTS[executor["law"]][0] - 1)


def moments_of(executor: Options) -> queueing.Moments:
    """The second to fourth moment of the service times, in means of their own."""
    if executor["law"] != "lognormal":
        return MOMENTS[executor["law"]]
    variance = log(1 + executor["scv"])  # of the logarithm
    second, third, fourth = (
        exp(power * variance) if power * variance < queueing.MOST_EXPONENT else inf for power in (1, 3, 6)
    )
    return second, third, fourth


def held_against(known: Theory, values: Values, max_errors: float) -> Check:
    """The mean of the values against that of theory, in standard errors.

    Undecided when a mean of nothing at all would still be near enough: then the run was too short.
    """
    of = "" if known.priority is None else f", priority {known.priority}"
    name, note = f"standard errors from theory{of}", f"theory: mean {known.figure} {known.value:.4g}"
    error = inf
    if len(values) >= BATCHES:
        error = known.error_of(len(values))
        if not known.is_exact:
            error = max(error, cautious_error(values))
    if max_errors * error >= known.value:
        return at_most(name, None, max_errors, f"{note}; too few requests to tell")
    error = max(error, batch_error(values))
    mean = float(values.mean())
    return at_most(
        name, abs(mean - known.value) / error, max_errors, f"mean {mean:.4g}; {note}, n={len(values)}"
    )


def settled(run: Run, known: Theory) -> Values:
    """One value a request, in s or 1 for yes, in the order of arrival, after a tenth of warm-up.

    In a closed loop without the last quarter: the first users have asked all that they had, and there are fewer.
    """
    rows = run.requests.sort_values(["arrival_ns", "request_id"])
    rows = rows[len(rows) // 10 : 3 * len(rows) // 4 if run.config["workload"]["kind"] == "closed" else None]
    if known.priority is not None:
        rows = rows[rows["priority"] == known.priority]
    if known.figure == "refused":
        return np.asarray(rows["outcome"] == "rejected", dtype=np.float64)
    end = rows["started_ns" if known.figure == "wait" else "finished_ns"]
    spent_ns = (end - rows["arrival_ns"])[rows["outcome"] == "completed"].to_numpy(dtype=np.float64)
    return np.asarray(spent_ns / NS_PER_S, dtype=np.float64)


def batch_error(values: Values) -> float:
    """The standard error of the mean, from the means of `BATCHES` batches."""
    means = [part.mean() for part in np.array_split(values, BATCHES)]
    return float(np.std(means, ddof=1) / sqrt(BATCHES))


def cautious_error(values: Values) -> float:
    """The same where no formula says all of how far values hang together: batches as long as they seem to need."""
    return (batch_means(values).half_width or 0.0) / t_quantile(BATCHES - 1)

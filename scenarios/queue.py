"""A queue and a server, or several: the bare system, held against queueing theory where there is a formula."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.settings import above
from sim.checks import Check, at_most
from sim.runs import Run
from sim.stage import Stage

Seconds = npt.NDArray[np.float64]

BATCHES = 20
SCV = {"exponential": 1.0, "deterministic": 0.0, "uniform": 1 / 3, "erlang2": 0.5}


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
    yield at_most("requests that did not complete", run.whole.not_completed, 0, f"n={run.whole.count}")
    if is_one_server(run.config, len(run.replicas)):
        yield mean_wait(run, s.max_errors)


def is_one_server(config: dict[str, Any], replicas: int) -> bool:
    """Whether the run was M/G/1: Poisson arrivals, one at a time, one line, nothing that turns away.

    Several queues have no formula for every strategy; tests/sim/test_queueing.py has those that do.
    """
    is_bare = not (config["health"]["enabled"] or config["quotas"]["enabled"] or config["faults"])
    is_poisson = config["workload"]["kind"] == "synthetic" and config["executor"]["name"] == "law"
    is_single = replicas == 1 and config["fleet"]["max_batch"] == 1
    return is_bare and is_poisson and is_single and load(config) < 1


def mean_wait(run: Run, max_errors: float) -> Check:
    """The mean time in the queue against the formula of Pollaczek and Khinchine.

    Undecided when a mean of nothing at all would still be near enough: then the run was too short.
    """
    executor, busy, waits_s = run.config["executor"], load(run.config), settled_waits(run)
    scv = executor["scv"] if executor["law"] == "lognormal" else SCV[executor["law"]]
    theory_s = executor["mean_s"] * busy * (1 + scv) / (2 * (1 - busy))
    error_s = executor["mean_s"] * asymptotic_error(busy, scv, len(waits_s))
    name, note = "standard errors from theory", f"theory {theory_s:.4g} s"
    if max_errors * error_s >= theory_s:
        return at_most(name, None, max_errors, f"{note}: too few requests to tell")
    error_s = max(error_s, batch_error(waits_s))
    mean_s = float(waits_s.mean())
    return at_most(name, abs(mean_s - theory_s) / error_s, max_errors, f"mean wait {mean_s:.4g} s, {note}")


def load(config: dict[str, Any]) -> float:
    """What share of its time the one server is busy."""
    return float(config["workload"]["rate"] * config["executor"]["mean_s"])


def settled_waits(run: Run) -> Seconds:
    """The time of each request in its queue, in s, in the order of arrival, after a tenth of warm-up."""
    rows = run.requests.sort_values("request_id")
    rows = rows[len(rows) // 10 :]
    spent_ns = (rows["started_ns"] - rows["arrival_ns"]).dropna().to_numpy(dtype=np.float64)
    return np.asarray(spent_ns / NS_PER_S, dtype=np.float64)


def asymptotic_error(busy: float, scv: float, count: int) -> float:
    """The standard error of a mean of `count` waits in a row, in mean service times.

    Exact for exponential service; from there to another law as in heavy traffic, where the variance of the mean
    grows with the cube of (1 + SCV) / 2.
    """
    exponential = busy * (2 + 5 * busy - 4 * busy**2 + busy**3) / (1 - busy) ** 4
    return sqrt(exponential * ((1 + scv) / 2) ** 3 / max(count, 1))


def batch_error(values: Seconds) -> float:
    """The standard error of the mean, from the means of `BATCHES` batches."""
    means = [part.mean() for part in np.array_split(values, BATCHES)]
    return float(np.std(means, ddof=1) / sqrt(BATCHES))

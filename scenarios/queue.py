"""A queue and a server, or several: the bare system, held against queueing theory where there is a formula."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np

from engine.clock import NS_PER_S
from engine.settings import above
from sim.checks import Check, at_most
from sim.runs import Run
from sim.stage import Stage

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
    executor, load = run.config["executor"], offered_load(run)
    if executor["name"] != "law" or len(run.replicas) > 1 or not load < 1:
        return  # several queues have no formula for every strategy; tests/sim/test_queueing.py has those that do
    waits_s = waits(run)
    mean_s, error_s = batch_means(waits_s)
    scv = executor["scv"] if executor["law"] == "lognormal" else SCV[executor["law"]]
    theory_s = executor["mean_s"] * load * (1 + scv) / (2 * (1 - load))  # Pollaczek and Khinchine
    note = f"mean wait {mean_s:.4f} s, theory {theory_s:.4f} s"
    yield at_most("standard errors from theory", abs(mean_s - theory_s) / error_s, s.max_errors, note)


def offered_load(run: Run) -> float:
    """What share of its time a replica would be busy."""
    return float(run.config["workload"]["rate"] * run.config["executor"]["mean_s"] / len(run.replicas))


def waits(run: Run) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """The time of each request in its queue, in s, in the order of arrival."""
    rows = run.requests.sort_values("request_id")
    found = (rows["started_ns"] - rows["arrival_ns"]).to_numpy(dtype=np.float64) / NS_PER_S
    return np.asarray(found, dtype=np.float64)


def batch_means(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[float, float]:
    """The mean after a tenth of warm-up, and its standard error from `BATCHES` batches."""
    kept = values[len(values) // 10 :]
    means = [part.mean() for part in np.array_split(kept, BATCHES)]
    return float(kept.mean()), float(np.std(means, ddof=1) / sqrt(BATCHES))

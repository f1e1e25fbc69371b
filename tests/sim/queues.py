"""Bare queueing systems, played through the whole engine by configuration, and what becomes of their requests."""

from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from types import SimpleNamespace

import numpy as np

from engine.clock import NS_PER_S
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

SCV = {"exponential": 1.0, "deterministic": 0.0, "uniform": 1 / 3, "erlang2": 0.5, "lognormal": 4.0}
MAX_ERRORS = 4


@dataclass
class Queued:
    """The requests of a run in the order of their numbers; times in ns, the service time as its law has drawn it."""

    arrival: np.ndarray
    start: np.ndarray
    end: np.ndarray
    replica: np.ndarray
    priority: np.ndarray
    is_served: np.ndarray
    service: np.ndarray

    def settled(self, name):
        """A figure of each request after a tenth of warm-up, in mean service times; of those who were served."""
        order = np.argsort(self.arrival, kind="stable")[len(self.arrival) // 10 :]
        order = order[self.is_served[order]]
        return ((self.start if name == "wait" else self.end) - self.arrival)[order] / NS_PER_S

    @property
    def sojourns(self):
        return self.settled("sojourn")

    @property
    def refused(self):
        """The share of requests that found no place, after a tenth of warm-up."""
        return 1 - self.is_served[len(self.is_served) // 10 :].mean()


@cache
def configured(*lines):
    return read(["scenario=queue", *lines])


@cache
def played(*lines, requests, seed=1):
    settings = configured(*lines)
    workload = replace(settings.workload, requests=requests)
    models = [model.name for model in settings.engine.fleet.models]
    stage = Stage(replace(settings.engine, seed=seed), draw(workload, seed, models), 1e7)
    try:
        stage.play()
        (home,) = stage.engine.fleet.homes.values()
        prompts = [SimpleNamespace(tokens=stage.trace.prompt(number)) for number in range(requests)]
        service = np.array([home.executor.service_ns(each) for each in prompts])
    finally:
        stage.close()
    rows = {name: column.values() for name, column in stage.recorder.columns.items()}
    order = np.argsort(rows["request_id"])
    names = ("arrival_ns", "started_ns", "finished_ns", "replica", "priority")
    found = [rows[name][order] for name in names]
    return Queued(*found, rows["outcome"][order] == "completed", service)


def fleet(count, load, strategy="round_robin"):
    """Queues side by side, each with a server of that load."""
    return (f"fleet.replicas={count}", f"workload.rate={count * load}", f"strategy={strategy}")


def servers(count, load, waiting=None):
    """Servers before one line, in which so many may wait."""
    bound = () if waiting is None else (f"fleet.queue_capacity={waiting}",)
    return (f"fleet.max_batch={count}", f"workload.rate={count * load}", *bound)


def law(name):
    return (f"executor.law={name}", f"executor.scv={SCV[name] if name == 'lognormal' else 1.0}")


def shared(load):
    return ("fleet.discipline=ps", "fleet.max_batch=512", f"workload.rate={load}")


def classes(first, second, discipline):
    """Two classes of Poisson arrivals with these loads."""
    shares = f"workload.classes=[{{name: x, share: {first}, priority: 1}}, {{name: y, share: {second}}}]"
    rate = f"workload.rate={first + second}"
    return ("workload=classes", shares, rate, f"fleet.discipline={discipline}")


def closed(users, think_s=10):
    return ("workload=closed", f"workload.users={users}", f"workload.think_s={think_s}")


def replications(*lines, runs, requests):
    return [played(*lines, requests=requests, seed=seed) for seed in range(1, runs + 1)]


def means(*lines, runs, requests, figure="sojourn"):
    """The mean of each replication."""
    return np.array(
        [run.settled(figure).mean() for run in replications(*lines, runs=runs, requests=requests)]
    )


def error(values):
    """The standard error of the mean of independent values."""
    return np.std(values, ddof=1) / sqrt(len(values))


def agrees(values, expected, expected_error=0.0):
    """Whether chance explains how far the mean of the values is from what was expected."""
    return abs(np.mean(values) - expected) < MAX_ERRORS * sqrt(error(values) ** 2 + expected_error**2)

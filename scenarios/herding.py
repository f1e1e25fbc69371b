"""Routers that look at old loads run after each other; one that counts what it has sent itself does not."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

from engine.clock import NS_PER_S
from engine.settings import above, at_least
from scenarios.queue import scv_of
from sim import queueing
from sim.checks import Check, at_most
from sim.checks import at_least as no_less
from sim.intervals import t_quantile
from sim.runs import Run
from sim.stage import Stage
from sim.stats import BATCHES, Floats, batch_means

SURE = 2.0
"""Standard errors."""
WARM_UP = 0.1
"""Of the requests, that find less to do than there is in the long run."""


@dataclass
class Known:
    """What somebody else has measured: the mean sojourn where loads are so old, in mean service times."""

    age: float
    sojourn: float


@dataclass
class Settings:
    """Every number of the story. Ages and sojourns are in mean service times."""

    name: str
    known: list[Known]
    known_error: float
    max_errors: float
    worse_from: float
    max_own_times: float
    told_from: float

    def __post_init__(self) -> None:
        for index, each in enumerate(self.known):
            above(f"scenario.known[{index}].sojourn", each.sojourn, 0)
        at_least("scenario.known_error", self.known_error, 0)
        for name in ("max_errors", "max_own_times"):
            above(f"scenario.{name}", getattr(self, name), 0)


def script(stage: Stage, s: Settings) -> None:
    """Nothing happens."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    by_age = {age_of(runs[0]): runs for runs in run.beside.values()}
    own = [run] if not by_age else by_age.pop(age_of(run))
    every = [each for runs in (own, *by_age.values()) for each in runs]
    lost = sum(each.whole.not_completed for each in every)
    yield at_most("requests that did not complete", lost, 0, f"{len(every)} runs of n={run.whole.count}")
    yield by_own_counts(own, s)
    for age, runs in sorted(by_age.items()):
        yield from known(age, runs, s)
    for age, runs in sorted(by_age.items()):
        if age >= s.worse_from:
            yield worse_than_blind(age, runs)
    yield at_most("herds told where own counts decide", herds(own), 0, f"{len(own)} runs")
    for age, runs in sorted(by_age.items()):
        if age >= s.told_from:
            name = f"runs in which a herd is told, loads of age {age:g}"
            yield no_less(name, sum(bool(herds([each])) for each in runs), len(runs), says(runs))


def by_own_counts(runs: list[Run], s: Settings) -> Check:
    """How near the strategy comes to one line for all, which no choice of a replica can beat."""
    replicas, load = len(runs[0].replicas), load_of(runs[0])
    central = 1 + queueing.wait_of_many(replicas, replicas * load)
    mean, error = settled(runs)
    name = "mean sojourn by own counts, times that of one line for all"
    return at_most(name, mean / central, s.max_own_times, f"{mean:.4g} +-{error:.2g}, one line {central:.4g}")


def worse_than_blind(age: float, runs: list[Run]) -> Check:
    """Whether loads of that age do more harm than random choices, which make each replica a queue of its own."""
    blind = 1 + queueing.wait_of_one(load_of(runs[0]), scv_of(runs[0].config["executor"]))
    mean, error = settled(runs)
    name = f"loads of age {age:g}: mean sojourn above that of blind choices"
    verdict = "inconclusive"
    if abs(mean - blind) > SURE * error:
        verdict = "pass" if mean > blind else "fail"
    note = f"{mean:.4g} +-{error:.2g}, blind {blind:.4g}"
    return Check(name, mean - blind, ">=", 0.0, verdict, note, "worse from about 5 on")


def known(age: float, runs: list[Run], s: Settings) -> Iterator[Check]:
    """The mean sojourn against what is known of loads of that age, in standard errors of both."""
    for each in s.known:
        if each.age == age and is_the_one_measured(runs[0]):
            mean, error = settled(runs)
            errors = sqrt(error**2 + (s.known_error * each.sojourn) ** 2)
            name = f"loads of age {age:g}: standard errors from what is known"
            note, published = f"mean sojourn {mean:.4g} +-{error:.2g}", f"{each.sojourn:g}"
            tells = s.max_errors * errors < each.sojourn  # else a mean of nothing at all would do
            value = abs(mean - each.sojourn) / errors if tells else None
            yield at_most(name, value, s.max_errors, note, published=published)


def is_the_one_measured(run: Run) -> bool:
    """Whether it is the system that the known figures are of."""
    executor = run.config["executor"]
    is_markov = executor["name"] == "law" and executor["law"] == "exponential"
    return is_markov and len(run.replicas) == 4 and abs(load_of(run) - 0.8) < 1e-9  # noqa: PLR2004


def load_of(run: Run) -> float:
    """The share of the time that each replica has somebody to serve."""
    offered = run.config["workload"]["rate"] * run.config["executor"]["mean_s"]
    return float(offered / len(run.replicas))


def age_of(run: Run) -> float:
    """How old the loads get that its strategy sees, in mean service times."""
    routing: dict[str, Any] = run.config["routing"]
    return float(routing["refresh_s"] / run.config["executor"]["mean_s"])


def settled(runs: list[Run]) -> tuple[float, float]:
    """The mean sojourn over several runs, and its standard error."""
    found = [batch_means(sojourns(each)) for each in runs]
    squares = sum((each.half_width or 0.0) ** 2 for each in found)
    return sum(each.mean for each in found) / len(found), sqrt(squares) / len(found) / t_quantile(BATCHES - 1)


def sojourns(run: Run) -> Floats:
    """Of each request after the warm-up, in mean service times, in the order of arrival."""
    rows = run.requests.sort_values(["arrival_ns", "request_id"])
    rows = rows[int(WARM_UP * len(rows)) :]
    spent_ns = (rows["finished_ns"] - rows["arrival_ns"]).to_numpy(dtype=float)
    spent: Floats = spent_ns / (NS_PER_S * float(run.config["executor"]["mean_s"]))
    return spent


def herds(runs: list[Run]) -> int:
    """How many the detector names."""
    return sum(finding.detector == "herding" for each in runs for finding in each.findings)


def says(runs: list[Run]) -> str:
    """What the detector says of the first of them that it has something to say of."""
    told = (finding.says for each in runs for finding in each.findings if finding.detector == "herding")
    return next(told, "")

"""More models than memory: who is asked for is loaded, who was not for longest goes, and theory knows how often."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log, sqrt

import numpy as np

from engine.settings import above, at_least
from sim import metrics
from sim.checks import Check, at_most, evidence
from sim.checks import at_least as no_less
from sim.intervals import t_quantile
from sim.loading import Z_90
from sim.residency import found_in_memory, loads_s, lru_hit_ratio, sent_away_busy
from sim.runs import Run
from sim.stage import Stage
from sim.stats import BATCHES, Floats, batch_means

EXACT_S = 1e-6
IN_MEMORY, GONE = ("healthy", "degraded", "draining"), ("unloaded", "loading")
PUBLISHED = {1: 0.352, 2: 0.566, 3: 0.692, 5: 0.816, 10: 0.930}
"""Residency of twenty models by Zipf 1.8, measured elsewhere by independent draws."""


@dataclass
class Settings:
    """How many models there is memory for, and the bounds."""

    name: str
    resident: int
    max_errors: float
    min_loads: int
    min_load_times: float

    def __post_init__(self) -> None:
        at_least("scenario.resident", self.resident, 1)
        above("scenario.max_errors", self.max_errors, 0)
        at_least("scenario.min_loads", self.min_loads, 0)
        above("scenario.min_load_times", self.min_load_times, 0)


def script(stage: Stage, s: Settings) -> None:
    """Nothing happens but traffic: every load is asked for by somebody."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    every = [run, *(each for name, runs in run.beside.items() for each in runs if each is not run)]
    lost = sum(each.whole.not_completed for each in every)
    yield at_most(
        "requests that did not complete", lost, 0, f"{len(every)} runs, n={run.whole.count} in the first"
    )
    loads = sum(len(loads_s(each.facts)) for each in every)
    yield evidence("loads", loads, s.min_loads)
    most = max((most_loaded(each) - memory_for(each) for each in every), default=0)
    yield at_most("models in memory beyond what there is room for", most, 0)
    busy = sum(sent_away_busy(each.requests, each.facts) for each in every)
    yield at_most("models sent away while they served somebody", busy, 0)
    if run.config["executor"]["name"] != "torch":  # there loading takes what it takes
        yield from load_times(every, s)
    yield waiting(run, s)
    for each in sorted(every, key=memory_for):
        if is_calm(each):
            yield residency(each, s)


def memory_for(run: Run) -> int:
    """How many models there is memory for."""
    return int(run.config["scenario"]["resident"])


def most_loaded(run: Run) -> int:
    """The largest number of models that were in memory at once."""
    moves = run.facts[run.facts["kind"] == "model_state_changed"]
    there: set[str] = set()
    most = 0
    for key, state in zip(moves["subject"].tolist(), moves["detail"].tolist(), strict=True):
        if state in IN_MEMORY:
            there.add(key)
        elif state in GONE:
            there.discard(key)
        most = max(most, len(there))
    return most


def load_times(runs: list[Run], s: Settings) -> Iterator[Check]:
    """The first load of each model is log-normal as asked for, every later one takes what a local disk does."""
    models = runs[0].config["models"]
    loads = [loads_s(each.facts) for each in runs]
    cold = np.log(
        loads[0].loc[loads[0]["number"] == 0, "took_s"].to_numpy(dtype=float)
    )  # the same in every run
    sigma = log(models["cold_p90_s"] / models["cold_median_s"]) / Z_90
    name, note = "cold loads: standard errors from their law", "no load was cold"
    value = None
    if len(cold) and sigma:
        value = abs(float(cold.mean()) - log(models["cold_median_s"])) / (sigma / sqrt(len(cold)))
        mean_s, p90_s = np.exp(cold.mean()), np.exp(np.percentile(cold, 90))
        note = f"geometric mean {mean_s:.3g} s, p90 {p90_s:.3g} s, n={len(cold)}"
    published = f"median {models['cold_median_s']:g} s, p90 {models['cold_p90_s']:g} s"
    yield at_most(name, value, s.max_errors, note, published=published)
    queued = [
        0.0,
        *(off for each in loads for off in (each["took_s"] - models["warm_s"])[each["number"] > 0]),
    ]
    number = len(queued) - 1
    off_s = max(0.0, -min(queued))  # it may have had to wait for room besides
    name = "warm loads: seconds by which one was too quick"
    yield at_most(
        name, off_s if number else None, EXACT_S, f"n={number}, median {np.median(queued[1:] or [0]):+.3g} s"
    )


def waiting(run: Run, s: Settings) -> Check:
    """What it costs not to be in memory: time to first token of who had to wait for a load, and of who had not."""
    rows = run.whole.completed
    ttft_s = metrics.ttft_s(rows)
    waited = (rows["loaded_ns"] > rows["arrival_ns"]).to_numpy()
    name = "median TTFT of who waited for a load, in times of the others'"
    if not waited.any() or waited.all():
        return no_less(name, None, s.min_load_times)
    there, loaded = float(np.median(ttft_s[~waited])), float(np.median(ttft_s[waited]))
    note = f"{loaded:.4g} s (n={waited.sum()}), p99 {np.percentile(ttft_s[waited], 99):.4g} s; {there:.4g} s"
    return no_less(name, loaded / there, s.min_load_times, f"{note} (n={(~waited).sum()})")


def is_calm(run: Run) -> bool:
    """Whether nobody's load gets in the way of others': only then is there a theory of the order in which they go."""
    return run.config["workload"]["kind"] == "synthetic" and busy_share(run) < 0.05  # noqa: PLR2004


def busy_share(run: Run) -> float:
    """The part of the time in which a request is in the house, were there one at a time."""
    spent = (run.requests["finished_ns"] - run.requests["arrival_ns"]).sum()
    whole = run.requests["finished_ns"].max() - run.requests["arrival_ns"].min()
    return float(spent / whole) if len(run.requests) else 0.0


def residency(run: Run, s: Settings) -> Check:
    """How often a request's model was in memory already, against theory, after the models have come once."""
    models, resident = len(run.config["fleet"]["models"]), memory_for(run)
    theory = lru_hit_ratio(models, run.config["workload"]["model_zipf"], resident)
    found: Floats = found_in_memory(run.requests, run.facts)[resident * 5 :]
    name = f"memory for {resident}: standard errors of residency from theory"
    if len(found) < 10 * BATCHES:
        return at_most(name, None, s.max_errors, f"theory {theory:.3f}; too few requests to tell")
    seen = batch_means(found)
    error = max((seen.half_width or 0.0) / t_quantile(BATCHES - 1), sqrt(theory * (1 - theory) / len(found)))
    published = f"{PUBLISHED[resident]:.3f}" if resident in PUBLISHED else ""
    note = f"{seen.mean:.3f} +-{error:.2g}, theory {theory:.3f}, n={len(found)}"
    apart = abs(seen.mean - theory)
    errors = (
        apart / error if error else inf if apart else 0.0
    )  # where all have room, neither leaves any doubt
    return at_most(name, errors, s.max_errors, note, published=published)

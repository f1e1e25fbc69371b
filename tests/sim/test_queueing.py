"""Queueing theory through the whole engine: what the formulas say, within what chance allows.

One FIFO queue a replica, exponential service with mean 1 unless said otherwise. Every strategy meets the same
arrivals and the same service times, so that differences between strategies are differences of pairs. A mean may be
four standard errors from theory, found from replications; where a discipline can be written down in a few lines, it
is held against those lines instead, request by request and to the nanosecond.
"""

from dataclasses import dataclass, replace
from functools import cache
from heapq import heapify, heapreplace
from itertools import pairwise
from math import log, sqrt

import numpy as np
import pytest

from engine.clock import NS_PER_S
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

STRATEGIES = ("least_loaded", "power_of_two", "round_robin", "random")
LAWS = ("exponential", "deterministic", "uniform", "erlang2", "lognormal")
SCV = {"exponential": 1.0, "deterministic": 0.0, "uniform": 1 / 3, "erlang2": 0.5, "lognormal": 4.0}
MAX_ERRORS = 4


@dataclass
class Queued:
    """What became of the requests of a run, in the order in which they came; times in ns."""

    arrival: np.ndarray
    start: np.ndarray
    end: np.ndarray
    replica: np.ndarray

    @property
    def service(self):
        return self.end - self.start

    @property
    def sojourns(self):
        """The times in the system after a tenth of warm-up, in mean service times."""
        return (self.end - self.arrival)[len(self.end) // 10 :] / NS_PER_S


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
    finally:
        stage.close()
    rows = {name: column.values() for name, column in stage.recorder.columns.items()}
    order = np.argsort(rows["request_id"])
    names = ("arrival_ns", "started_ns", "finished_ns", "replica")
    return Queued(*(rows[name][order] for name in names))


def fleet(count, load, strategy="round_robin"):
    return (f"fleet.replicas={count}", f"workload.rate={count * load}", f"strategy={strategy}")


def law(name):
    return (f"executor.law={name}", f"executor.scv={SCV[name] if name == 'lognormal' else 1.0}")


def means(*lines, runs, requests):
    """The mean sojourn of each replication."""
    return np.array(
        [played(*lines, requests=requests, seed=seed).sojourns.mean() for seed in range(1, runs + 1)]
    )


def error(values):
    """The standard error of the mean of independent values."""
    return np.std(values, ddof=1) / sqrt(len(values))


def agrees(values, expected, expected_error=0.0):
    """Whether chance explains how far the mean of the values is from what was expected."""
    return abs(np.mean(values) - expected) < MAX_ERRORS * sqrt(error(values) ** 2 + expected_error**2)


def pollaczek_khinchine(load, scv):
    return 1 + load * (1 + scv) / (2 * (1 - load))


def round_robin(count, load):
    """E_n/M/1: s = (n rho / (n rho + 1 - s))^n in (0, 1), W = 1 / (1 - s)."""
    s = 0.5
    for _ in range(10_000):
        s = (count * load / (count * load + 1 - s)) ** count
    return 1 / (1 - s)


def central(count, load):
    """M/M/n: Erlang C from Erlang B, W = 1 + C / (n - a)."""
    offered, blocked = count * load, 1.0
    for servers in range(1, count + 1):
        blocked = offered * blocked / (servers + offered * blocked)
    waits = blocked / (1 - load * (1 - blocked))
    return 1 + waits / (count - offered)


def shortest_of_two(load, cut=30):
    """Join the shorter of two queues: the mean sojourn from the Markov chain on (n1, n2), cut at `cut` a queue."""
    size, rate = cut + 1, 2 * load
    flow = np.zeros((size * size, size * size))  # from column to row
    for one, two in np.ndindex(size, size):
        here = one * size + two
        if one < two:
            flow[here + size, here] += rate
        if two < one:
            flow[here + 1, here] += rate
        if one == two < cut:
            flow[here + size, here] += rate / 2
            flow[here + 1, here] += rate / 2
        if one:
            flow[here - size, here] += 1
        if two:
            flow[here - 1, here] += 1
    flow -= np.diag(flow.sum(axis=0))
    flow[0] = 1.0  # the chances add up to 1, in the place of an equation that follows from the others
    chances = np.linalg.solve(flow, np.eye(size * size)[0]).reshape(size, size)
    held = np.add.outer(np.arange(size), np.arange(size))
    return float((chances * held).sum() / rate)


def one_line(arrival, service):
    """When each would start in one queue before one server (Lindley's recursion)."""
    starts, free = [], 0
    for came, takes in zip(arrival.tolist(), service.tolist(), strict=True):
        starts.append(max(came, free))
        free = starts[-1] + takes
    return np.array(starts)


def central_ends(run, count):
    """When each would end, were there one queue before all servers."""
    free, ends = [0] * count, []
    heapify(free)
    for came, takes in zip(run.arrival.tolist(), run.service.tolist(), strict=True):
        ends.append(max(came, free[0]) + takes)
        heapreplace(free, ends[-1])
    return np.array(ends)


def shortest_ends(run, count):
    """When each would end, did it join the shortest queue; of equals the one chosen longest ago."""
    queues, turns, ends = [[] for _ in range(count)], list(range(count)), []
    for number, (came, takes) in enumerate(zip(run.arrival.tolist(), run.service.tolist(), strict=True)):
        queues = [[end for end in queue if end > came] for queue in queues]
        chosen = min(range(count), key=lambda place: (len(queues[place]), turns[place]))
        turns[chosen] = count + number
        ends.append((queues[chosen][-1] if queues[chosen] else came) + takes)
        queues[chosen].append(ends[-1])
    return np.array(ends)


def test_the_formulas_are_those_of_the_tables():
    loads = (0.5, 0.7, 0.9)
    assert [round_robin(2, load) for load in loads] == pytest.approx([1.6180, 2.6006, 7.5883], abs=1e-4)
    assert [round_robin(5, load) for load in loads] == pytest.approx([1.3962, 2.1642, 6.1421], abs=1e-4)
    assert [central(4, load) - 1 for load in loads] == pytest.approx([0.086957, 0.357212, 1.969383], abs=1e-6)
    assert central(2, 0.5) < shortest_of_two(0.5) < round_robin(2, 0.5)
    assert shortest_of_two(0.5, cut=20) == pytest.approx(shortest_of_two(0.5), abs=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_one_server_takes_them_as_lindleys_recursion_does(name):
    run = played(*fleet(1, 0.8), *law(name), requests=400)
    np.testing.assert_array_equal(run.start, one_line(run.arrival, run.service))


def test_round_robin_is_a_line_for_every_nth():
    run = played(*fleet(4, 0.8), requests=1000)
    for place in range(4):
        start = one_line(run.arrival[place::4], run.service[place::4])
        np.testing.assert_array_equal(run.start[place::4], start)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_replica_is_a_line_of_its_own(strategy):
    run = played(*fleet(4, 0.8, strategy), requests=1000)
    for name in "abcd":
        there = run.replica == name
        np.testing.assert_array_equal(run.start[there], one_line(run.arrival[there], run.service[there]))


def test_the_least_loaded_is_the_shortest_queue_request_by_request():
    run = played(*fleet(4, 0.8, "least_loaded"), requests=1000)
    np.testing.assert_array_equal(run.end, shortest_ends(run, 4))


def test_every_strategy_meets_the_same_arrivals_and_service_times():
    first, *others = (played(*fleet(4, 0.8, strategy), requests=1000) for strategy in STRATEGIES)
    for other in others:
        np.testing.assert_array_equal(other.arrival, first.arrival)
        np.testing.assert_array_equal(other.service, first.service)
        assert (other.replica != first.replica).any()


@pytest.mark.parametrize("name", ["exponential", "deterministic"])
def test_one_server_is_as_slow_as_pollaczek_and_khinchine_say(name):
    values = means(*fleet(1, 0.5), *law(name), runs=10, requests=600)
    assert agrees(values, pollaczek_khinchine(0.5, SCV[name]))
    assert error(values) < 0.1


def test_round_robin_over_four_is_erlang_arrivals_at_each():
    values = means(*fleet(4, 0.5), runs=10, requests=600)
    assert agrees(values, round_robin(4, 0.5))
    assert error(values) < 0.05


def test_the_shorter_of_two_is_about_that_of_the_markov_chain():
    values = means(*fleet(2, 0.5, "least_loaded"), runs=10, requests=600)
    assert agrees(values, shortest_of_two(0.5))
    assert error(values) < 0.05


def in_order(count, load, *, runs, requests):
    """Mean sojourns of the replications, one row a discipline: the central queue, then every strategy."""
    rows = [means(*fleet(count, load, strategy), runs=runs, requests=requests) for strategy in STRATEGIES]
    ideal = []
    for seed in range(1, runs + 1):
        run = played(*fleet(count, load, STRATEGIES[0]), requests=requests, seed=seed)
        ideal.append(replace(run, end=central_ends(run, count)).sojourns.mean())
    return [np.array(ideal), *rows]


def test_the_order_of_the_strategies_is_that_of_theory_in_every_replication():
    """Central queue < shortest queue < power of two < round robin < random, with the same requests."""
    for better, worse in pairwise(in_order(4, 0.8, runs=4, requests=1000)):
        assert (better < worse).all()


def test_loads_that_are_seen_too_late_are_worse_than_none():
    """The shortest queue as it was up to 20 service times ago herds; what we count ourselves does not."""
    lines = (*fleet(4, 0.8, "least_loaded"), "+strategy.ties=random")
    fresh = played(*lines, requests=1000).sojourns.mean()
    stale = played(*lines, "routing.refresh_s=20", requests=1000).sojourns.mean()
    blind = played(*fleet(4, 0.8, "random"), requests=1000).sojourns.mean()
    assert fresh < blind < stale


LONG = {"runs": 6, "requests": 3000}


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_each_strategy_is_better_than_the_next_beyond_chance(load):
    for better, worse in pairwise(in_order(4, load, **LONG)):
        assert (worse - better).mean() > MAX_ERRORS * error(worse - better)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "load", "expected", "rounded"),
    [
        ("least_loaded", 0.5, 1.160, 0.0005),
        ("power_of_two", 0.5, 1.326, 0.0005),
        ("round_robin", 0.5, round_robin(4, 0.5), 0.0),
        ("round_robin", 0.8, round_robin(4, 0.8), 0.0),
        ("random", 0.5, 2.0, 0.0),
        ("random", 0.8, 5.0, 0.0),
    ],
)
def test_the_values_over_four_replicas(strategy, load, expected, rounded):
    """Those without a formula were simulated elsewhere, with a million requests ten times, and are rounded.

    At the higher load waits hang together for long, and a mean is worth less.
    """
    values = means(*fleet(4, load, strategy), **LONG)
    assert agrees(values, expected, rounded)
    assert error(values) < (0.05 if load <= 0.5 else 0.15) * expected


@pytest.mark.slow
def test_the_shortest_of_five_is_what_was_simulated_elsewhere():
    values = means(*fleet(5, 0.8, "least_loaded"), runs=5, requests=3000)
    assert agrees(values, 1.755, 0.007 / 1.96)
    assert error(values) < 0.1 * 1.755


@pytest.mark.slow
@pytest.mark.parametrize(("count", "load"), [(2, 0.5), (2, 0.7), (5, 0.7)])
def test_round_robin_over_a_few_is_erlang_arrivals_at_each(count, load):
    values = means(*fleet(count, load), runs=5, requests=3000)
    assert agrees(values, round_robin(count, load))
    assert error(values) < 0.1 * round_robin(count, load)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_one_server_is_as_slow_as_its_law_makes_it(name):
    """The few long services of a log-normal decide its mean, so that it says least."""
    values = means(*fleet(1, 0.5), *law(name), runs=5, requests=3000)
    assert agrees(values, pollaczek_khinchine(0.5, SCV[name]))
    assert error(values) < (0.25 if SCV[name] > 1 else 0.07) * pollaczek_khinchine(0.5, SCV[name])


@pytest.mark.slow
def test_the_slowest_of_one_server_are_those_of_an_exponential():
    """The q-quantile of the sojourn is -ln(1 - q) W, with W = 2 at this load."""
    runs = [played(*fleet(1, 0.5), *law("exponential"), requests=4000, seed=seed) for seed in range(1, 6)]
    for share in (0.5, 0.95):
        values = [np.quantile(run.sojourns, share) for run in runs]
        assert agrees(values, -2 * log(1 - share))
        assert error(values) < 0.15 * -2 * log(1 - share)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["least_loaded", "power_of_two"])
def test_the_shorter_of_two_is_that_of_the_markov_chain(strategy):
    """Of two replicas, power of two sees both."""
    values = means(*fleet(2, 0.5, strategy), runs=5, requests=3000)
    assert agrees(values, shortest_of_two(0.5))
    assert error(values) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("refresh_s", "expected"), [(0.1, 1.996), (1, 2.565), (20, 16.65)])
def test_stale_loads_cost_what_was_measured_elsewhere(refresh_s, expected):
    """There the standard deviation was at most 1 %."""
    lines = (*fleet(4, 0.8, "least_loaded"), "+strategy.ties=random", f"routing.refresh_s={refresh_s}")
    values = means(*lines, runs=3, requests=8000)
    assert agrees(values, expected, 0.01 * expected)
    assert error(values) < 0.1 * expected

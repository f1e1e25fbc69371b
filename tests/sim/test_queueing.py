"""Queueing theory through the whole engine: what the formulas say, within what chance allows.

One FIFO queue a replica, exponential service with mean 1 unless said otherwise. Every strategy meets the same
arrivals and the same service times, so that differences between strategies are differences of pairs.
"""

from functools import cache
from math import sqrt

import numpy as np
import pytest

from engine.clock import NS_PER_S
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

STRATEGIES = ("random", "round_robin", "power_of_two", "least_loaded")


@cache
def sojourns(*lines, requests=4000, seed=1):
    """The time of each request in the system, in mean service times, after a tenth of warm-up."""
    settings = read(["scenario=queue", f"workload.requests={requests}", f"seed={seed}", *lines])
    models = [model.name for model in settings.engine.fleet.models]
    stage = Stage(settings.engine, draw(settings.workload, seed, models), 1e7)
    try:
        stage.play()
        rows = stage.recorder.columns
        order = np.argsort(rows["request_id"].values())
        spent_ns = (rows["finished_ns"].values() - rows["arrival_ns"].values())[order]
    finally:
        stage.close()
    return spent_ns[requests // 10 :] / NS_PER_S


def mean_and_error(*lines, runs, requests):
    """The mean over replications, and its standard error."""
    means = [sojourns(*lines, requests=requests, seed=seed).mean() for seed in range(1, runs + 1)]
    return np.mean(means), np.std(means, ddof=1) / sqrt(runs)


def fleet(count, load, strategy="round_robin"):
    return (f"fleet.replicas={count}", f"workload.rate={count * load}", f"strategy={strategy}")


def round_robin(count, load):
    """E_n/M/1: s = (n rho / (n rho + 1 - s))^n in (0, 1), W = 1 / (1 - s)."""
    s = 0.5
    for _ in range(10_000):
        s = (count * load / (count * load + 1 - s)) ** count
    return 1 / (1 - s)


def shortest_of_two(load, cut=70):
    """Join the shortest of two queues: the mean sojourn from the Markov chain on (n1, n2), cut at `cut` a queue."""
    rate, chance = 2 * load, np.zeros((cut + 1, cut + 1))
    chance[0, 0] = 1.0
    total = rate + 2
    for _ in range(6000):  # power iteration of the uniformised chain
        to = np.zeros_like(chance)
        for one in range(cut + 1):
            low, even, high = chance[one, :one], chance[one, one], chance[one, one + 1 :]
            to[one, 1 : one + 1] += rate * low  # the second one is shorter
            if one < cut:
                to[one + 1, one + 1 :] += rate * high
                to[one + 1, one] += rate / 2 * even
                to[one, one + 1] += rate / 2 * even
            else:
                to[one, one] += rate * even
        to[:-1, :] += chance[1:, :]
        to[0, :] += chance[0, :]
        to[:, :-1] += chance[:, 1:]
        to[:, 0] += chance[:, 0]
        chance = to / total
    counts = np.add.outer(np.arange(cut + 1), np.arange(cut + 1))
    return float((chance * counts).sum() / rate)


def test_the_formulas_are_those_of_the_tables():
    assert [round_robin(2, load) for load in (0.5, 0.7, 0.9)] == pytest.approx(
        [1.6180, 2.6006, 7.5883], abs=1e-4
    )
    assert [round_robin(5, load) for load in (0.5, 0.7, 0.9)] == pytest.approx(
        [1.3962, 2.1642, 6.1421], abs=1e-4
    )


@pytest.mark.parametrize(
    ("law", "wait"), [("exponential", 1.0), ("deterministic", 0.5), ("uniform", 2 / 3), ("erlang2", 0.75)]
)
def test_one_server_waits_as_long_as_pollaczek_and_khinchine_say(law, wait):
    mean, error = mean_and_error(*fleet(1, 0.5), f"executor.law={law}", runs=5, requests=2500)
    assert abs(mean - 1 - wait) < 4 * error + 0.02


def test_round_robin_over_four_is_erlang_arrivals_at_each():
    mean, error = mean_and_error(*fleet(4, 0.5), runs=5, requests=2500)
    assert abs(mean - round_robin(4, 0.5)) < 4 * error + 0.01


def test_at_random_each_of_four_is_alone():
    mean, error = mean_and_error(*fleet(4, 0.5, "random"), runs=5, requests=2500)
    assert abs(mean - 2.0) < 4 * error + 0.02


def test_the_order_of_the_strategies_is_that_of_theory():
    """Shortest queue < power of two < round robin < random, with the same requests: pair by pair.

    Below them all is the central queue, M/M/4 with C = .5964 at this load.
    """
    runs = range(1, 4)
    means = {
        name: np.array([sojourns(*fleet(4, 0.8, name), requests=2500, seed=seed).mean() for seed in runs])
        for name in STRATEGIES
    }
    central = 1 + 0.5964 / (4 - 3.2)
    assert means["least_loaded"].mean() > central - 0.15
    for better, worse in (
        ("least_loaded", "power_of_two"),
        ("power_of_two", "round_robin"),
        ("round_robin", "random"),
    ):
        assert (means[better] < means[worse]).all()


def test_loads_that_are_seen_too_late_are_worse_than_none():
    """The shortest queue as it was up to 20 service times ago herds; what we count ourselves does not."""
    lines = (*fleet(4, 0.8, "least_loaded"), "+strategy.ties=random")
    fresh = sojourns(*lines, requests=2500).mean()
    stale = sojourns(*lines, "routing.refresh_s=20", requests=2500).mean()
    blind = sojourns(*fleet(4, 0.8, "random"), requests=2500).mean()
    assert fresh < blind < stale


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "load", "expected", "within"),
    [
        ("power_of_two", 0.5, 1.326, 0.015),
        ("least_loaded", 0.5, 1.160, 0.010),
        ("round_robin", 0.8, None, 0.06),
        ("random", 0.5, 2.0, 0.03),
    ],
)
def test_the_values_over_four_replicas(strategy, load, expected, within):
    """Those without a formula were simulated elsewhere, with a million requests ten times."""
    wanted = expected or round_robin(4, load)
    mean, error = mean_and_error(*fleet(4, load, strategy), runs=6, requests=15_000)
    assert abs(mean - wanted) < max(4 * error, within)
    assert error < 0.05 * wanted


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["least_loaded", "power_of_two"])
def test_the_shorter_of_two_is_that_of_the_markov_chain(strategy):
    """Of two replicas, power of two sees both."""
    mean, error = mean_and_error(*fleet(2, 0.5, strategy), runs=6, requests=12_000)
    assert abs(mean - shortest_of_two(0.5)) < 4 * error + 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("refresh", "expected"), [(0.1, 1.996), (1, 2.565), (20, 16.65)])
def test_stale_loads_cost_what_was_measured_elsewhere(refresh, expected):
    lines = (*fleet(4, 0.8, "least_loaded"), "+strategy.ties=random", f"routing.refresh_s={refresh}")
    mean, error = mean_and_error(*lines, runs=5, requests=15_000)
    assert abs(mean - expected) < max(4 * error, 0.04 * expected)

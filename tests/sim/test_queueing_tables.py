"""Queueing theory through the whole engine: the tables of its formulas, within what chance allows.

Formulas are held against the whole tables. Rows from their corners and middle are played, by configuration alone;
that each discipline serves whom it should is shown request by request in test_queueing.py. A row is so many
independent runs of so many requests, of which the first tenth is left out. Their mean may be four standard errors
from theory, as the runs themselves say; a row also says how large that error may be at most, so that none is left
that could not fail. Waits hang together for long where the load is high: there a mean is worth less.
"""

from itertools import pairwise
from math import log, sqrt

import numpy as np
import pytest

from engine.clock import NS_PER_S
from sim import queueing
from tests.sim.queues import (
    MAX_ERRORS,
    SCV,
    agrees,
    classes,
    closed,
    error,
    fleet,
    law,
    means,
    played,
    replications,
    servers,
    shared,
)

LOADS = (0.5, 0.7, 0.9)
RUNS = 6
LOOSE = {0.5: 0.07, 0.7: 0.1, 0.8: 0.15, 0.9: 0.3}
"""By load: the largest standard error, as a share of what is expected, that a row may have."""
pytestmark = pytest.mark.slow


def shortest_of_two(load, cut=60):
    """Join the shorter of two queues: the mean sojourn from the Markov chain on (shorter, longer), cut at `cut`."""
    states = [(low, high) for low in range(cut + 1) for high in range(low, cut + 1)]
    index, rate = {state: number for number, state in enumerate(states)}, 2 * load
    flow = np.zeros((len(states), len(states)))  # from column to row
    for (low, high), here in index.items():
        if low < cut:
            flow[index[min(low + 1, high), max(low + 1, high)], here] += rate
        if high:
            flow[index[min(low, high - 1), max(low, high - 1)], here] += 1
        if low:
            flow[index[low - 1, high], here] += 1
    flow -= np.diag(flow.sum(axis=0))
    flow[0] = 1.0  # the chances add up to 1, in the place of an equation that follows from the others
    chances = np.linalg.solve(flow, np.eye(len(states))[0])
    return float(sum(p * (low + high) for p, (low, high) in zip(chances, states, strict=True)) / rate)


def holds(values, expected, load, expected_error=0.0):
    assert agrees(values, expected, expected_error)
    assert error(values) < LOOSE[load] * expected


def size(load):
    """Requests of each run: longer where waits hang together."""
    return {0.5: 700, 0.7: 1000, 0.8: 1300, 0.9: 1600}[load]


@pytest.mark.parametrize("load", LOADS)
def test_one_server(load):
    """M/M/1: the mean wait; the sojourn is exponential, and so are its quantiles. N = RUNS x size(load)."""
    runs = replications(*servers(1, load), runs=RUNS, requests=size(load))
    waits = [run.settled("wait").mean() for run in runs]
    holds(waits, load / (1 - load), load if load != 0.5 else 0.7)
    formula = sqrt(queueing.spread_of_one(load, queueing.EXPONENTIAL) / (RUNS * 9 * size(load) // 10))
    assert abs(np.mean(waits) - load / (1 - load)) < MAX_ERRORS * formula
    for share in (0.5, 0.95) if load < 0.9 else (0.5,):
        values = [np.quantile(run.sojourns, share) for run in runs]
        assert agrees(values, -log(1 - share) / (1 - load))
    if load == 0.5:
        together = np.concatenate([run.sojourns for run in runs])
        assert np.quantile(together, 0.99) == pytest.approx(9.210, rel=0.15)


def drawn(run, of):
    """What theory says of the arrivals and services that were drawn: of `of`(load, SCV), in their mean service."""
    rate = len(run.arrival) / (run.arrival.max() / NS_PER_S)
    service = run.service / NS_PER_S
    scv = (service**2).mean() / service.mean() ** 2 - 1
    return service.mean() * of(rate * service.mean(), scv)


WAIT_AT_HALF = {"deterministic": 0.5, "uniform": 2 / 3, "erlang2": 0.75, "lognormal": 2.5}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", WAIT_AT_HALF)
def test_formulas_of_one_server_with_other_laws(name, load):
    """Waits of .5, .6667, .75, 2.5 at .5, and so on."""
    assert queueing.wait_of_one(load, SCV[name]) == pytest.approx(WAIT_AT_HALF[name] * load / (1 - load))


@pytest.mark.parametrize(
    ("name", "load"),
    [
        *[(name, 0.7) for name in WAIT_AT_HALF],
        ("deterministic", 0.9),
        ("uniform", 0.5),
        ("lognormal", 0.5),
    ],
)
def test_one_server_with_other_laws(name, load):
    """M/G/1.

    The few long services of a log-normal decide its mean: those that were drawn are what it is held against, which
    takes three quarters of the variance away and the bias of runs in which there happened to be none.
    """
    count = size(load) * (2 if SCV[name] > 1 else 1)
    runs = replications(*servers(1, load), *law(name), runs=RUNS, requests=count)
    expected = queueing.wait_of_one(load, SCV[name])
    values = np.array([run.settled("wait").mean() for run in runs])
    if SCV[name] > 1:
        values += expected - np.array([drawn(run, queueing.wait_of_one) for run in runs])
    assert agrees(values, expected)
    assert error(values) < LOOSE[load] * 1.5 * expected


@pytest.mark.parametrize(
    ("count", "chances", "waits"),
    [
        (2, (0.333333, 0.576471, 0.852632), (0.333333, 0.960784, 4.263158)),
        (4, (0.173913, 0.428654, 0.787753), (0.086957, 0.357212, 1.969383)),
        (8, (0.059044, 0.270603, 0.701533), (0.014761, 0.112751, 0.876916)),
    ],
)
def test_formulas_of_several_servers_before_one_line(count, chances, waits):
    assert [queueing.erlang_c(count, count * load) for load in LOADS] == pytest.approx(chances, abs=1e-6)
    assert [queueing.wait_of_many(count, count * load) for load in LOADS] == pytest.approx(waits, abs=1e-6)


@pytest.mark.parametrize(("count", "load"), [(2, 0.5), (2, 0.9), (4, 0.7), (8, 0.5), (8, 0.9)])
def test_several_servers_before_one_line(count, load):
    """M/M/c: how many wait (Erlang C), and for how long; in the middle the slowest, too."""
    runs = replications(*servers(count, load), runs=RUNS, requests=size(load))
    spent, chance = [run.settled("wait") for run in runs], queueing.erlang_c(count, count * load)
    assert agrees([(each > 0).mean() for each in spent], chance)
    assert agrees([each.mean() for each in spent], queueing.wait_of_many(count, count * load))
    assert error([(each > 0).mean() for each in spent]) < 0.2 * chance
    if (count, load) == (4, 0.7):
        assert agrees([np.quantile(each, 0.95) for each in spent], 1.7905)
        assert agrees([np.quantile(each, 0.99) for each in spent], 3.1317)


@pytest.mark.parametrize("name", ["exponential", "deterministic", "lognormal"])
def test_a_shared_server_does_not_care_for_the_law(name):
    """M/G/1-PS at .7: 3.3333, and E[T given x] = x / (1 - rho): short and long ones are slowed alike."""
    runs = replications(*shared(0.7), *law(name), runs=RUNS, requests=1000)
    values = np.array([run.sojourns.mean() for run in runs])
    if SCV[name] > 1:
        values += 3.3333 - np.array([drawn(run, lambda a, _scv: queueing.sojourn_shared(a)) for run in runs])
    holds(values, 3.3333, 0.8)
    if name == "exponential":
        for part in (slice(0, 300), slice(600, 900)):  # of the services in order, short and long ones
            slowed = []
            for run in runs:
                chosen = np.argsort(run.service[100:], kind="stable")[part] + 100
                slowed.append((run.end - run.arrival)[chosen].sum() / run.service[chosen].sum())
            assert agrees(slowed, 1 / 0.3)


LOST = [
    (1, 10, 0.7, 0.008645),
    (1, 10, 1.0, 0.090909),
    (1, 10, 1.2, 0.192586),
    (1, 10, 2.0, 0.500244),
    (4, 12, 4.8, 0.191825),
    (2, 2, 1.0, 0.200000),
    (4, 4, 3.0, 0.206107),
    (10, 10, 5.0, 0.018385),
    (50, 50, 40.0, 0.018691),
]


@pytest.mark.parametrize(("count", "places", "a", "expected"), LOST)
def test_formulas_of_who_finds_no_place(count, places, a, expected):
    assert queueing.turned_away(count, places, a) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("count", "places", "a", "expected", "name"),
    [
        *[(*row, "exponential") for row in LOST if row[:3] not in ((1, 10, 1.2), (2, 2, 1.0), (10, 10, 5.0))],
        *[(*row, "uniform") for row in LOST if row[:2] in ((4, 4), (50, 50))],  # nobody waits: any law
    ],
)
def test_who_finds_no_place_goes_away(count, places, a, expected, name):
    """M/M/c/K, at and above capacity too; where nobody may wait (Erlang B), under two laws of service."""
    runs = replications(*servers(count, a / count, places - count), *law(name), runs=RUNS, requests=1000)
    refused = [run.refused for run in runs]
    assert agrees(refused, expected)
    assert error(refused) < (0.1 if expected > 0.05 else 0.3) * expected
    if places == 12:
        assert queueing.sojourn_bounded(4, 12, 4.8) == pytest.approx(2.23509, abs=1e-5)
        holds([run.sojourns.mean() for run in runs], 2.23509, 0.5)


@pytest.mark.parametrize(
    ("loads", "waits", "sojourns"),
    [((0.2, 0.5), (0.8750, 2.9167), (1.2500, 4.1667)), ((0.3, 0.4), (1.0, 3.3333), (1.4286, 4.7619))],
)
@pytest.mark.parametrize("discipline", ["priority", "preemptive"])
def test_two_classes(discipline, loads, waits, sojourns):
    assert queueing.waits_by_class(loads) == pytest.approx(waits, abs=1e-4)
    assert queueing.sojourns_by_class(loads) == pytest.approx(sojourns, abs=1e-4)
    runs = replications(*classes(*loads, discipline), runs=RUNS, requests=1200)
    for priority, wait, sojourn in zip((1, 0), waits, sojourns, strict=True):
        expected, values = (wait if discipline == "priority" else sojourn), []
        for run in runs:
            chosen = np.arange(120, 1200)[run.priority[120:] == priority]
            end = run.start if discipline == "priority" else run.end
            values.append((end - run.arrival)[chosen].mean() / NS_PER_S)
        holds(values, expected, 0.8)


@pytest.mark.parametrize(("users", "expected"), [(5, 1.46663), (20, 10.0375), (50, 40.0)])
def test_users_who_think_before_they_ask_again(users, expected):
    """A closed loop, Z = 10, S = 1: the sojourn is that of mean value analysis."""
    assert queueing.sojourn_closed(users, 10) == pytest.approx(expected, abs=1e-4)
    runs = replications(*closed(users), runs=RUNS, requests=1200)
    values = [
        run.sojourns[:800].mean() for run in runs
    ]  # later, the first users have asked all that they had
    holds(values, expected, 0.5)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, (1.6180, 2.6006, 7.5883)), (5, (1.3962, 2.1642, 6.1421)), (8, (1.3424, 2.0558, 5.7807))],
)
def test_formulas_of_round_robin(count, expected):
    assert [queueing.sojourn_in_turn(count, load) for load in LOADS] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("count", "load"), [(2, 0.5), (2, 0.9), (4, 0.7), (8, 0.5), (8, 0.9)])
def test_round_robin(count, load):
    """Every n-th arrival of a Poisson process: E_n/M/1."""
    formula = queueing.sojourn_in_turn(count, load)
    holds(means(*fleet(count, load), runs=RUNS, requests=size(load)), formula, load)


@pytest.mark.parametrize(
    ("strategy", "load"), [("least_loaded", 0.5), ("least_loaded", 0.9), ("power_of_two", 0.7)]
)
def test_the_shorter_of_two(strategy, load):
    """The Markov chain has no closed form, and is solved; of two replicas, power of two sees both."""
    expected = shortest_of_two(load)
    assert queueing.wait_of_many(2, 2 * load) + 1 < expected < queueing.sojourn_in_turn(2, load)
    holds(means(*fleet(2, load, strategy), runs=RUNS, requests=size(load)), expected, load)


@pytest.mark.parametrize(
    ("strategy", "count", "load", "expected", "rounded"),
    [
        ("least_loaded", 4, 0.5, 1.160, 0.0005),
        ("least_loaded", 4, 0.9, 3.27, 0.005),
        ("least_loaded", 5, 0.8, 1.755, 0.007 / 1.96),
        ("power_of_two", 4, 0.5, 1.326, 0.0005),
        ("power_of_two", 4, 0.9, 3.78, 0.005),
        ("random", 4, 0.7, 1 / 0.3, 0.0),
        ("random", 8, 0.5, 2.0, 0.0),
    ],
)
def test_other_strategies(strategy, count, load, expected, rounded):
    """Random ones are lines by themselves; what has no formula was simulated elsewhere, ten times a million."""
    holds(means(*fleet(count, load, strategy), runs=RUNS, requests=size(load)), expected, load, rounded)


def test_each_strategy_is_better_than_the_next_beyond_chance():
    """Central line < shortest queue < power of two < round robin < random, by the differences of pairs."""
    load, strategies = 0.8, ("least_loaded", "power_of_two", "round_robin", "random")
    systems = [servers(4, load), *(fleet(4, load, strategy) for strategy in strategies)]
    for better, worse in pairwise(means(*each, runs=RUNS, requests=size(load)) for each in systems):
        assert (worse - better).mean() > MAX_ERRORS * error(worse - better)


@pytest.mark.parametrize(("refresh_s", "expected"), [(0.1, 1.996), (1, 2.565), (20, 16.65)])
def test_stale_loads_cost_what_was_measured_elsewhere(refresh_s, expected):
    """There the standard deviation was at most 1 %."""
    lines = (*fleet(4, 0.8, "least_loaded"), "+strategy.ties=random", f"routing.refresh_s={refresh_s}")
    holds(means(*lines, runs=RUNS, requests=1500), expected, 0.8, 0.01 * expected)


def test_many_queues_come_near_to_endlessly_many():
    """Power of two: 1.2657, 1.6145, 2.6141 for ever more queues; with four of them a little more."""
    limits = [queueing.sojourn_of_choices(2, load) for load in LOADS]
    assert limits == pytest.approx([1.2657, 1.6145, 2.6141], abs=1e-4)
    few, many = (means(*fleet(count, 0.7, "power_of_two"), runs=4, requests=200 * count) for count in (2, 16))
    assert abs(many.mean() - limits[1]) < abs(few.mean() - limits[1])
    assert abs(many.mean() / limits[1] - 1) < 0.06


def test_utilisation_is_what_was_offered():
    """U = X E[S] of each of four servers, beside the share of the time that was offered."""
    runs = replications(*servers(4, 0.7), runs=RUNS, requests=1000)
    used = [run.service.sum() / (4 * (run.end.max() - run.arrival.min())) for run in runs]
    assert agrees(used, 0.7)
    assert error(used) < 0.03
    assert sqrt(RUNS) * error([run.service.mean() / 1e9 for run in runs]) == pytest.approx(
        sqrt(1 / 1000), rel=0.7
    )


def test_the_chain_does_not_feel_where_it_is_cut():
    assert shortest_of_two(0.5, cut=20) == pytest.approx(shortest_of_two(0.5), abs=1e-9)
    assert shortest_of_two(0.9) == pytest.approx(shortest_of_two(0.9, cut=75), rel=1e-4)


def test_the_same_lines_are_played_once():
    assert played(*servers(1, 0.5), requests=900) is played(*servers(1, 0.5), requests=900)

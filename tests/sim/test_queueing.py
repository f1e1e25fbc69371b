"""The order of service through the whole engine: each discipline against a few lines that say the same.

Every strategy meets the same arrivals and the same service times, so a discipline can be written down again as a
recursion over them, and is held against it request by request and to the nanosecond. What chance leaves of the means
stands in test_queueing_tables.py.
"""

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, pairwise

import numpy as np
import pytest

from tests.sim.queues import SCV, classes, closed, fleet, law, played, servers, shared

STRATEGIES = ("least_loaded", "power_of_two", "round_robin", "random")


def pairs(*columns):
    return list(zip(*[column.tolist() for column in columns], strict=True))


def one_line(arrival, service):
    """When each would start in one queue before one server (Lindley's recursion)."""
    starts, free = [], 0
    for came, takes in pairs(arrival, service):
        starts.append(max(came, free))
        free = starts[-1] + takes
    return np.array(starts)


def central_ends(run, number, places=None):
    """When each would end, were there one line before all servers; -1 for who finds no place."""
    free, ends, here = [0] * number, [], []
    heapify(free)
    for came, takes in pairs(run.arrival, run.service):
        while here and here[0] <= came:
            heappop(here)
        if places is not None and len(here) >= places:
            ends.append(-1)
            continue
        ends.append(max(came, free[0]) + takes)
        heapreplace(free, ends[-1])
        heappush(here, ends[-1])
    return np.array(ends)


def shortest_ends(run, number):
    """When each would end, did it join the shortest queue; of equals the one chosen longest ago."""
    queues, turns, ends = [[] for _ in range(number)], list(range(number)), []
    for turn, (came, takes) in enumerate(pairs(run.arrival, run.service), number):
        queues = [[end for end in queue if end > came] for queue in queues]
        chosen = min(range(number), key=lambda place: (len(queues[place]), turns[place]))
        turns[chosen] = turn
        ends.append((queues[chosen][-1] if queues[chosen] else came) + takes)
        queues[chosen].append(ends[-1])
    return np.array(ends)


def ranked_ends(run, *, gives_way):
    """When each would end before one server that takes the first of the highest class; and whether it gives way."""
    coming = deque(
        sorted(enumerate(pairs(run.arrival, run.priority, run.service)), key=lambda each: each[1][0])
    )
    here, tie, now, ends = [], count(), 0, np.zeros(len(run.arrival), dtype=np.int64)
    while coming or here:
        if not here:
            now = max(now, coming[0][1][0])
        while coming and coming[0][1][0] <= now:
            number, (_, priority, takes) = coming.popleft()
            heappush(here, (-priority, next(tie), number, takes))
        rank, order, number, takes = heappop(here)
        until = now + takes
        if gives_way and coming and coming[0][1][0] < until:  # who goes on is still the first of its class
            until = coming[0][1][0]
            heappush(here, (rank, order, number, takes - (until - now)))
        else:
            ends[number] = until
        now = until
    return ends


def shared_ends(run):
    """When each would end, were all who are there served at an equal part of the speed."""
    left, now, ends = {}, 0.0, np.zeros(len(run.arrival))
    coming = deque(enumerate(pairs(run.arrival, run.service)))
    while coming or left:
        done = min(left.values(), default=np.inf) * len(left) if left else np.inf
        until = min(now + done, coming[0][1][0] if coming else np.inf)
        part = (until - now) / max(len(left), 1)
        left = {number: rest - part for number, rest in left.items()}
        now = until
        if coming and coming[0][1][0] <= now:
            number, (_, takes) = coming.popleft()
            left[number] = takes
        else:
            number = min(left, key=left.get)
            ends[number] = now
            del left[number]
    return ends


@pytest.mark.parametrize("name", SCV)
def test_one_server_takes_them_as_lindleys_recursion_does(name):
    run = played(*fleet(1, 0.8), *law(name), requests=400)
    np.testing.assert_array_equal(run.start, one_line(run.arrival, run.service))
    np.testing.assert_array_equal(run.end - run.start, run.service)


@pytest.mark.parametrize(("number", "name"), [(2, "deterministic"), (4, "exponential")])
def test_servers_before_one_line_take_the_next_as_they_get_free(number, name):
    run = played(*servers(number, 0.8), *law(name), requests=400)
    np.testing.assert_array_equal(run.end, central_ends(run, number))


@pytest.mark.parametrize(("number", "waiting", "load"), [(1, 9, 1.2), (4, 8, 1.2), (2, 0, 1.0)])
def test_who_finds_no_place_is_refused_and_nobody_else(number, waiting, load):
    run = played(*servers(number, load, waiting), requests=400)
    expected = central_ends(run, number, number + waiting)
    np.testing.assert_array_equal(run.is_served, expected >= 0)
    np.testing.assert_array_equal(run.end[run.is_served], expected[run.is_served])
    assert 0 < run.refused < 1


@pytest.mark.parametrize("gives_way", [False, True])
def test_the_first_class_goes_first(gives_way):
    run = played(*classes(0.4, 0.5, "preemptive" if gives_way else "priority"), requests=400)
    np.testing.assert_array_equal(run.end, ranked_ends(run, gives_way=gives_way))
    assert set(run.priority) == {0, 1}


def test_who_gives_way_is_served_for_what_is_left_and_not_anew():
    polite, plain = (played(*classes(0.4, 0.5, each), requests=400) for each in ("preemptive", "priority"))
    assert (polite.end - polite.start > polite.service).any()
    assert (plain.end - plain.start == plain.service).all()
    assert polite.end.max() == plain.end.max(), "the work is the same"


def test_all_who_share_a_server_are_served_at_once():
    run = played(*shared(0.8), requests=300)
    np.testing.assert_allclose(run.end, shared_ends(run), atol=len(run.end))  # each end is rounded to the ns
    assert (run.start == run.arrival).all()


def test_users_who_wait_for_their_answers_stand_in_one_line_too():
    run = played(*closed(8, think_s=5), requests=300)
    order = np.argsort(run.arrival, kind="stable")
    np.testing.assert_array_equal(run.start[order], one_line(run.arrival[order], run.service[order]))
    inside = np.searchsorted(run.arrival[order], run.end) - np.searchsorted(np.sort(run.end), run.end)
    assert inside.max() <= 8


def test_round_robin_is_a_line_for_every_nth():
    run = played(*fleet(4, 0.8), requests=700)
    for place in range(4):
        start = one_line(run.arrival[place::4], run.service[place::4])
        np.testing.assert_array_equal(run.start[place::4], start)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_replica_is_a_line_of_its_own(strategy):
    run = played(*fleet(4, 0.8, strategy), requests=700)
    for name in "abcd":
        there = run.replica == name
        np.testing.assert_array_equal(run.start[there], one_line(run.arrival[there], run.service[there]))


def test_the_least_loaded_is_the_shortest_queue_request_by_request():
    run = played(*fleet(4, 0.8, "least_loaded"), requests=700)
    np.testing.assert_array_equal(run.end, shortest_ends(run, 4))


def test_every_strategy_meets_the_same_arrivals_and_service_times():
    first, *others = (played(*fleet(4, 0.8, strategy), requests=700) for strategy in STRATEGIES)
    for other in others:
        np.testing.assert_array_equal(other.arrival, first.arrival)
        np.testing.assert_array_equal(other.end - other.start, first.end - first.start)
        assert (other.replica != first.replica).any()


def test_the_order_of_the_strategies_is_that_of_theory():
    """Central line < shortest queue < power of two < round robin < random, with the same requests."""
    lines = [servers(4, 0.8), *(fleet(4, 0.8, strategy) for strategy in STRATEGIES)]
    for better, worse in pairwise(played(*each, requests=700) for each in lines):
        assert better.sojourns.mean() < worse.sojourns.mean()


def test_loads_that_are_seen_too_late_are_worse_than_none():
    """The shortest queue as it was up to 20 service times ago herds; what we count ourselves does not."""
    lines = (*fleet(4, 0.8, "least_loaded"), "+strategy.ties=random")
    fresh = played(*lines, requests=700).sojourns.mean()
    stale = played(*lines, "routing.refresh_s=20", requests=700).sojourns.mean()
    blind = played(*fleet(4, 0.8, "random"), requests=700).sojourns.mean()
    assert fresh < blind < stale

"""Every strategy keeps the router's promise; then each its own."""

from collections import Counter
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest

from engine.request import Request
from engine.routing import strategy

REQUEST = Request(0, "llama", np.zeros(4, dtype=np.int32), 6, 0)


@dataclass(slots=True, eq=False)
class Stub:
    name: str
    model: str = "llama"
    tokens_in_flight: int = 0
    requests_in_flight: int = 0


def fleet(count):
    return [Stub(f"r{number}") for number in range(count)]


def picks(chooser, replicas, count):
    return [chooser.pick(REQUEST, replicas, 0).name for _ in range(count)]


@pytest.fixture(params=strategy.names())
def chooser(request):
    return strategy.make(request.param)


@pytest.mark.parametrize("count", range(1, 51))
def test_the_choice_is_always_one_of_the_candidates(chooser, count):
    replicas, random = fleet(count), Random(count)  # noqa: S311  seeded
    for _ in range(3 * count):
        for replica in replicas:
            replica.tokens_in_flight = random.randrange(3)
        assert chooser.pick(REQUEST, replicas, 0) in replicas


def test_state_survives_lists_that_shrink_and_grow(chooser):
    replicas, random = fleet(50), Random(7)  # noqa: S311  seeded
    for now_ns in range(3000):
        kept = random.sample(range(50), random.randint(1, 50))
        candidates = [replicas[index] for index in sorted(kept)]
        chosen = chooser.pick(REQUEST, candidates, now_ns)
        assert chosen in candidates
        chosen.tokens_in_flight = random.randrange(100)


def test_a_strategy_changes_no_replica(chooser):
    replicas = fleet(5)
    picks(chooser, replicas, 20)
    assert all(replica.tokens_in_flight == replica.requests_in_flight == 0 for replica in replicas)


def test_an_idle_fleet_shares_exactly_evenly(chooser):
    assert set(Counter(picks(chooser, fleet(7), 700)).values()) == {100}


def test_round_robin_takes_each_in_turn():
    chooser, replicas = strategy.make("round_robin"), fleet(3)
    assert picks(chooser, replicas, 7) == ["r0", "r1", "r2", "r0", "r1", "r2", "r0"]


def test_round_robin_ignores_loads():
    chooser, replicas = strategy.make("round_robin"), fleet(2)
    replicas[0].tokens_in_flight = 10**9
    assert picks(chooser, replicas, 4) == ["r0", "r1", "r0", "r1"]


def test_the_turn_goes_on_behind_the_last_one_when_one_is_missing():
    chooser, (one, two, three) = strategy.make("round_robin"), fleet(3)
    assert picks(chooser, [one, two, three], 2) == ["r0", "r1"]
    assert picks(chooser, [one, two], 1) == ["r0"]
    assert picks(chooser, [one, two, three], 2) == ["r1", "r2"]


def test_turns_stay_fair_while_fallbacks_are_taken_from_shorter_lists():
    chooser, replicas = strategy.make("round_robin"), fleet(4)
    alive, counts = replicas[:3], Counter()
    for number in range(1200):
        chosen = chooser.pick(REQUEST, alive if number % 2 else [*alive], 0)
        counts[chosen.name] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("late", range(4))
def test_one_that_becomes_known_late_starves_nobody(chooser, late):
    replicas = fleet(4)
    picks(chooser, replicas[:late] + replicas[late + 1 :], 1)
    counts = Counter(chooser.pick(REQUEST, [*replicas], 0).name for _ in range(400))
    assert set(counts.values()) == {100}


def test_least_loaded_takes_whoever_has_the_fewest_tokens_in_flight():
    chooser, random = strategy.make("least_loaded"), Random(3)  # noqa: S311  seeded
    replicas = fleet(9)
    for _ in range(500):
        for replica in replicas:
            replica.tokens_in_flight = random.randrange(20)
        least = min(replica.tokens_in_flight for replica in replicas)
        assert chooser.pick(REQUEST, replicas, 0).tokens_in_flight == least


def test_least_loaded_gives_equals_a_turn_each():
    chooser, replicas = strategy.make("least_loaded"), fleet(4)
    replicas[1].tokens_in_flight = 5
    assert picks(chooser, replicas, 6) == ["r0", "r2", "r3", "r0", "r2", "r3"]

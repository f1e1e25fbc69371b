"""The ranking against sorting."""

from random import Random

import pytest

from engine.quotas.ranking import Ranking


@pytest.mark.parametrize("seed", range(5))
def test_the_least_is_what_sorting_says(seed):
    random, ranking, ranks = Random(seed), Ranking(), {}  # noqa: S311  seeded
    for _ in range(3000):
        key = random.randrange(30)
        if random.random() < 0.3:
            ranking.drop(key)
            ranks.pop(key, None)
        else:
            rank = ranks[key] = (random.randrange(8), key)
            ranking.put(key, rank)
        assert ranking.least() == min(ranks, key=ranks.get, default=None)
        assert len(ranking) == len(ranks)


def test_among_equals_whoever_has_had_the_rank_longest():
    ranking = Ranking()
    for name in ("c", "a", "b"):
        ranking.put(name, 1)
    ranking.put("c", 2)
    ranking.put("c", 1)
    ranking.put("a", 1)
    order = []
    while (first := ranking.least()) is not None:
        order.append(first)
        ranking.drop(first)
    assert order == ["a", "b", "c"]


@pytest.mark.parametrize("rank", [lambda number: -number, lambda number: 7])
def test_ranks_that_change_for_ever_take_no_more_room(rank):
    ranking = Ranking()
    ranking.put("first", -100_000)
    for number in range(10_000):
        if number % 3 == 0:
            ranking.drop(number % 10)
        ranking.put(number % 10, rank(number))
    assert len(ranking._heap) <= 2 * len(ranking) + 16

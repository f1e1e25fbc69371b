"""Each policy evicts whom its plainest words say; its twins evict in another order, or more than they need to."""

from inspect import signature

import pytest

from engine.cache.orders import LRU, Smallest, orders
from engine.errors import BadSettings
from sim.plain_evictions import POLICIES, judged
from tests.scenarios.verdicts import failed

FEW = (
    "beside.seeds=0",
    "workload.requests=320",
    "workload.prefixes.count=40",
    "workload.prefixes.tokens.median=512",
    "tiers.block_tokens=512",
    "tiers.ram.gib=8",
    "scenario.min_evictions=20",
    "scenario.min_models=3",
    "scenario.min_in_use=0.9",
)
OTHER = {
    "arc": "fifo",
    "fifo": "lru",
    "gdsf": "lru",
    "lfu": "lru",
    "lru": "fifo",
    "round_robin": "smallest",
    "s3fifo": "sieve",
    "sieve": "fifo",
    "smallest": "round_robin",
}
"""Of each policy, one that evicts in another order."""


def test_every_policy_has_plain_words():
    assert sorted(POLICIES) == orders.names()


def of_each(*quick):
    """All policies; only some of them in every run of the tests."""
    return [policy if policy in quick else pytest.param(policy, marks=pytest.mark.slow) for policy in OTHER]


@pytest.mark.parametrize("policy", of_each("gdsf"))
def test_each_policy_evicts_in_its_own_order(play, policy):
    run = play(*FEW, f"eviction={policy}")
    assert run.verdict == "pass"
    assert len(run.facts) > 20


@pytest.mark.slow
def test_all_of_them_do_on_full_caches_of_500_gb(play):
    run = play("seed=3")
    assert run.verdict == "pass"
    assert run.manifest["cache"]["tiers"]["ram"]["used_bytes"] > 490e9
    assert len(run.beside) == len(POLICIES)


@pytest.mark.parametrize("policy", of_each("lfu"))
def test_twin_that_evicts_by_another_policy_is_seen(play, monkeypatch, policy):
    other = orders.classes[OTHER[policy]]
    taken = signature(orders.classes[policy]).parameters.keys() - signature(other).parameters.keys()
    make = (lambda links, busy, **_: other(links, busy)) if taken else other
    monkeypatch.setitem(orders.classes, policy, make)
    assert f"evictions of another document than the next by {policy}" in failed(
        play(*FEW, f"eviction={policy}")
    )


def test_twin_that_evicts_the_newest_is_seen_in_all_ways(play, monkeypatch):
    monkeypatch.setattr(LRU, "victim", lambda self: self._links.before[self.head])
    assert failed(play(*FEW)) == [
        "evictions of another document than the next by lru",
        "evictions from another model than its",
        "evictions while an older one stayed",
    ]


@pytest.mark.slow
def test_twin_beside_is_seen(play, monkeypatch):
    monkeypatch.setattr(Smallest, "between", staticmethod(lambda _turns, held_bytes: -held_bytes))
    beside = [
        "beside.seeds=1",
        "~beside.runs.arc",
        "~beside.runs.gdsf",
        "~beside.runs.s3fifo",
        "~beside.runs.sieve",
    ]
    run = play(*FEW, *beside, "~beside.runs.round_robin", "~beside.runs.fifo", "~beside.runs.lfu")
    assert failed(run) == ["the same by smallest"]


def test_twin_that_evicts_more_than_it_needs_is_seen(play):
    assert "evictions beyond need" in failed(play(*FEW, "tiers.headroom=0.05"))


@pytest.mark.slow
def test_a_cache_that_never_fills_shows_nothing(play):
    run = play(*FEW, "tiers.ram.gib=400")
    assert run.verdict == "inconclusive"
    assert failed(run) == []


@pytest.mark.slow
def test_requests_that_overlap_show_nothing_for_certain(play):
    run = play(*FEW, "workload.rate=50", "workload.arrivals.family=poisson")
    alone = next(check for check in run.checks if check.name == "part of the requests that were served alone")
    assert alone.verdict == "inconclusive"


@pytest.mark.slow
def test_twin_that_turns_requests_away_is_seen(play):
    lines = ["workload.rate=50", "fleet.queue_capacity=0", "fleet.max_batch=1"]
    assert "requests that did not complete" in failed(play(*FEW, *lines))


def test_several_tiers_are_refused(play):
    with pytest.raises(BadSettings, match=r"tiers is 'gpu, ram', but must be one tier"):
        play(*FEW[:-3], "tiers=gpu_ram")


def test_no_cache_is_refused(play):
    with pytest.raises(BadSettings, match=r"tiers\.enabled is False, but must be true"):
        play(*FEW, "tiers.enabled=false")


def test_a_judge_tells_whom_it_expected_and_goes_on():
    a, b, c = ("m", 1), ("m", 2), ("m", 3)
    asked = [(a, 1, 1.0), (b, 1, 1.0), (c, 1, 1.0), (a, 1, 1.0)]
    right = judged(POLICIES["lru"](), 2, asked, [[], [], [a], [b]])
    assert (right.evictions, right.wrong, right.early) == (2, [], 0)
    wrong = judged(POLICIES["lru"](), 2, asked, [[], [], [b], []])
    assert (wrong.wrong, wrong.newer) == ([(a, b)], 1)
    hasty = judged(POLICIES["lru"](), 3, asked, [[], [], [a], []])
    assert hasty.early == 1
    assert judged(POLICIES["lru"](), 2, asked, [[c], [], [], []]).wrong == [(None, c)]

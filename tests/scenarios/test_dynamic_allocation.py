"""The cache goes where the load is; its twins have no floors, keep them, follow nobody, or give away what is used."""

import pytest

from engine.cache.allocation import Dynamic, by_weight
from engine.errors import BadSettings
from tests.scenarios.verdicts import failed, verdicts

ALONE = ("beside.seeds=0",)
FEW = ("workload.rate=1.2", "tiers.ram.gib=7", *ALONE)
HOLDS, NEXT_HOLDS = "the most that the loaded model holds", "the most that the next loaded model holds"
RISES, LOST = "what its hit ratio rises by", "the most that a model lost below its floor, MiB"
OVER_EQUAL = "hit ratio above that of equal parts"
BESIDE_SHARED = "hit ratio beside that of no division"


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_cache_goes_where_the_load_is(play, seed):
    run = play(*FEW, f"seed={seed}")
    assert failed(run) == []
    undecided = [name for name, verdict in verdicts(run).items() if verdict == "inconclusive"]
    assert undecided == [OVER_EQUAL, BESIDE_SHARED]  # nothing was played beside


@pytest.mark.slow
def test_so_it_does_on_more_traffic_and_beside_other_divisions(play):
    lines = ["seed=4", "workload.rate=3", "tiers.ram.gib=24", "beside.seeds=1", "scenario.max_behind=0.03"]
    assert play(*lines).verdict == "pass"


def test_twin_whose_floors_are_ignored_is_seen(play, monkeypatch):
    monkeypatch.setattr(Dynamic, "sure_bytes", lambda self, capacity, holders, tier: [0] * len(holders))
    assert LOST in failed(play(*FEW))


@pytest.mark.slow
def test_twin_whose_floors_never_fall_is_seen(play):
    assert failed(play(*FEW, "scenario.floor=1")) == [HOLDS, RISES, NEXT_HOLDS]


@pytest.mark.slow
def test_twin_that_keeps_what_it_gave_when_the_load_moved_is_seen(play, monkeypatch):
    def all_to_the_first(self, capacity, holders, _tier):
        loaded = [holder.key.startswith("model-a@") for holder in holders]
        return by_weight(capacity, [1 if self.floor == 1 else 16 * is_loaded + 1 for is_loaded in loaded])

    monkeypatch.setattr(Dynamic, "sure_bytes", all_to_the_first)
    found = failed(play(*FEW))
    assert NEXT_HOLDS in found
    assert HOLDS not in found


@pytest.mark.slow
def test_twin_that_gives_away_what_is_in_use_is_seen_beside_others(play, monkeypatch):
    monkeypatch.setattr(Dynamic, "rank", lambda self, holder, tier, worth, age: (0.0, -holder.demand_bytes))
    run = play(*FEW, "beside.seeds=1")
    assert {OVER_EQUAL, BESIDE_SHARED} <= set(failed(run))


@pytest.mark.slow
def test_twin_that_turns_requests_away_is_seen(play):
    run = play(*FEW, "fleet.queue_capacity=0", "fleet.max_batch=1")
    assert "requests that did not complete" in failed(run)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["scenario.first=nope"], "scenario.first is 'nope', but must be one of model-a, "),
        (
            ["scenario.floors_at_s=10"],
            "scenario.floors_at_s is 10.0, but must be after scenario.window_from_s",
        ),
        (["scenario.floor=2"], "scenario.floor is 2.0, but must be from 0 to 1"),
        (["tiers.enabled=false"], "tiers is 'off', but must be on"),
    ],
)
def test_what_is_no_such_story_is_refused(play, lines, told):
    with pytest.raises(BadSettings, match=told):
        play(*FEW, *lines)


def test_too_little_traffic_shows_nothing_and_says_so(play):
    run = play("workload.requests=1", *ALONE)
    assert run.verdict != "pass"
    assert verdicts(run)["requests that did not complete"] == "pass"

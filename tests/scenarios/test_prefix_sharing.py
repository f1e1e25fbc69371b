"""What others computed saves prefill; the twins find nothing, or keep too little."""

import pytest

from engine.cache import PrefixCache
from sim.config import read
from tests.scenarios.verdicts import failed, verdicts

FEW = ("workload.requests=60", "workload.rate=0.3", "beside.seeds=1")
WITHOUT_AGENTS = ("~beside.runs.agents", "~beside.runs.agents_off", "~beside.runs.agents_endless")
SAVED = "conversations: part of the prompts saved"
OF_IDEAL = "conversations: of what an endless cache would have saved"
SOONER = "conversations: part of the time to first token saved"
AT_FIRST = "conversations: the same of first turns, by what other sessions left"


def test_templates_are_computed_once(play):
    run = play(*FEW, *WITHOUT_AGENTS)
    found = verdicts(run)
    assert [found[name] for name in (SAVED, OF_IDEAL, SOONER, AT_FIRST)] == ["pass"] * 4
    assert len(run.beside["off"]) == len(run.beside["endless"]) == 1


@pytest.mark.slow
def test_so_are_those_of_agents(play):
    assert play("workload.requests=200", "beside.seeds=1", "seed=5").verdict == "pass"


@pytest.mark.slow
def test_with_real_passes_the_same_is_saved(play):
    run = play("executor=torch", "size=small")
    found = verdicts(run)
    assert found[SAVED] == found[OF_IDEAL] == found["agents: part of the prompts saved"] == "pass"
    assert found["requests that did not complete"] == "pass"


@pytest.mark.slow
def test_twin_that_finds_nothing_is_seen_of_both_kinds(play, monkeypatch):
    find = PrefixCache.find
    monkeypatch.setattr(PrefixCache, "find", lambda self, space, keys, *rest: find(self, space, [], *rest))
    found = failed(play(*FEW))
    assert {SAVED, SOONER, AT_FIRST} <= set(found)
    assert {name.replace("conversations", "agents") for name in (SAVED, SOONER, AT_FIRST)} <= set(found)


@pytest.mark.slow
def test_twin_that_keeps_little_of_what_it_should_is_seen(play):
    found = failed(play(*FEW, "tiers.ram.gib=2"))
    assert {OF_IDEAL, OF_IDEAL.replace("conversations", "agents")} <= set(found)


@pytest.mark.slow
def test_twin_that_turns_requests_away_is_seen(play):
    assert "requests that did not complete" in failed(
        play(*FEW, *WITHOUT_AGENTS, "workload.rate=5", "fleet.queue_capacity=0", "fleet.max_batch=1")
    )


@pytest.mark.parametrize("size", ["small", "full"])
def test_it_has_both_sizes(size):
    assert read(["scenario=prefix_sharing", f"size={size}"]).scenario.name == "prefix_sharing"

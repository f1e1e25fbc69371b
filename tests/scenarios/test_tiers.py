"""One tier more finds more and costs nobody time; the twins lose what goes down, carry it slowly, or choose badly."""

import pytest

from engine.cache import Carrier, PrefixCache
from engine.cache.carrier import Decision
from tests.scenarios.verdicts import failed, verdicts

FEW = ("workload.requests=60", "workload.rate=0.3", "beside.seeds=1", "tiers.gpu.gib=3", "tiers.ram.gib=3",
       "tiers.ssd.gib=4", "tiers.network.gib=4")  # fmt: skip
TIMES = "times sooner the first token with gpu"
MORE, SOONER = "hit ratio gained by gpu + ram", "part of the time to first token saved by gpu + ram"
ALL = "hit ratio gained by all below gpu"
CHEAPER = "part of it saved by computing what is cheaper computed"


@pytest.mark.slow
def test_each_tier_finds_more_and_costs_nobody_time(play):
    fewer = ["~beside.runs.gpu_ram_ssd", "~beside.runs.gpu_ram_ssd_network"]
    run = play(*FEW, *fewer, "scenario.min_times_sooner=1.2", "scenario.max_fall=0.02")
    assert failed(run) == []
    assert {MORE, SOONER, ALL, CHEAPER} <= set(verdicts(run))
    notes = {check.name: check.note for check in run.checks}
    assert "found in gpu" in notes[TIMES]
    assert ", cloud " in notes["hit ratio gained by gpu + ram + ssd + network + cloud"]


@pytest.mark.slow
def test_real_files_are_written_read_and_removed(play):
    run = play("executor=torch", "size=small")
    found = verdicts(run)
    assert [found[name] for name in (MORE, ALL, "requests that did not complete")] == ["pass"] * 3
    assert list(run.manifest["cache"]["tiers"]) == ["gpu", "ram", "ssd", "network"]
    assert run.manifest["cache"]["ways"]["ssd"]["written_bytes"] > 0


@pytest.mark.slow
def test_twin_that_finds_nothing_is_seen(play, monkeypatch):
    find = PrefixCache.find
    monkeypatch.setattr(PrefixCache, "find", lambda self, space, keys, *rest: find(self, space, [], *rest))
    assert {TIMES, ALL} <= set(failed(play(*FEW)))


@pytest.mark.slow
def test_twin_that_loses_everything_once_there_are_several_tiers_is_seen(play, monkeypatch):
    find = PrefixCache.find

    def lost(self, space, keys, *rest):
        return find(self, space, keys if len(self.tiers) < 2 else [], *rest)

    monkeypatch.setattr(PrefixCache, "find", lost)
    assert {MORE, SOONER, ALL} <= set(failed(play(*FEW)))


@pytest.mark.slow
def test_twin_that_computes_what_is_cheaper_loaded_is_seen(play, monkeypatch):
    decide = Carrier._decide

    def wrong(self, prefix, prefill, num_tokens):
        if self._cache.settings.load == "always":
            return decide(self, prefix, prefill, num_tokens)
        return Decision(0, prefix.num_blocks - prefix.blocks_by_tier[0], 1, 1)

    monkeypatch.setattr(Carrier, "_decide", wrong)
    assert CHEAPER in failed(play(*FEW))


@pytest.mark.slow
def test_twin_that_turns_requests_away_is_seen(play):
    lines = ["workload.rate=20", "fleet.queue_capacity=0", "fleet.max_batch=1", "beside.seeds=0"]
    assert "requests that did not complete" in failed(play(*FEW, *lines))

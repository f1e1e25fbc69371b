import numpy as np
import pytest

from engine.cache import PrefixCache
from engine.settings import GIB, CacheSettings, TierSettings
from sim.replay import Outcome, endless, replay, replay_reference
from sim.replay.outcome import jain
from sim.replay.replay import BLOCK_BYTES, unit_cache
from sim.traffic import MixWorkload
from sim.traffic.mixes import chains


@pytest.fixture(scope="module")
def traffic():
    return chains(MixWorkload(duration_s=400), 1)


def outcome_of(traffic, hits, held=()):
    column = np.array(hits, np.int32).reshape(len(traffic), -1)
    return Outcome(chains=traffic, hits=column, evictions=0, held=np.array(held))


@pytest.mark.parametrize("capacity", [50, 500, 2_000, 8_000])
def test_the_engines_cache_with_one_lru_finds_what_the_plainest_one_does(traffic, capacity):
    plain = replay_reference(traffic, capacity)
    ours = replay(traffic, unit_cache(capacity, 64))
    partial = traffic.prompt_tokens % 64 > 0  # of full blocks alone, the engine computes the last one anew
    assert ours.hits[partial].tolist() == plain.hits[partial].tolist()
    assert set((plain.hits[~partial] - ours.hits[~partial]).ravel().tolist()) <= {0, 1}
    if (
        capacity >= 500
    ):  # a chain that does not fit is cut when it comes: its tail never enters, and never leaves
        assert ours.evictions == plain.evictions


def test_a_cache_that_never_fills_finds_the_ideal(traffic):
    ours = replay(traffic, unit_cache(traffic.unique_blocks(), 64))
    assert ours.token_hit_ratio() == pytest.approx(endless(traffic).token_hit_ratio(), abs=0.001)
    assert ours.evictions == 0


def test_two_tiers_find_together_what_one_of_their_size_does_and_say_where(traffic):
    ram, ssd = (TierSettings(gib=blocks * BLOCK_BYTES / GIB) for blocks in (500, 1_500))
    ours = replay(traffic, PrefixCache(CacheSettings(block_tokens=64, ram=ram, ssd=ssd)))
    one, whole = (replay(traffic, unit_cache(blocks, 64)) for blocks in (500, 2_000))
    in_ram, in_ssd = ours.tier_hit_ratios()
    assert in_ram + in_ssd == pytest.approx(ours.token_hit_ratio())
    assert ours.token_hit_ratio() == pytest.approx(whole.token_hit_ratio(), abs=0.01)
    assert in_ram == pytest.approx(one.token_hit_ratio(), abs=0.01)
    assert in_ssd > 0.1


def test_who_held_how_much_is_noted_and_a_fair_division_is_fair():
    traffic = chains(MixWorkload(duration_s=900), 1)
    shared, fair = (replay(traffic, unit_cache(2_000, 64, allocation=name)) for name in ("shared", "fair"))
    assert shared.held.sum() == pytest.approx(1.0, abs=0.01)
    assert np.argmax(shared.held) == 0
    assert fair.held_fairness() > 0.95 > shared.held_fairness()
    assert fair.token_hit_ratio() < shared.token_hit_ratio()


def test_ratios_are_of_tokens_blocks_and_requests(traffic):
    hits = np.minimum(traffic.prompt_blocks, 3)
    found = outcome_of(traffic, hits)
    assert found.token_hit_ratio() == pytest.approx(64 * hits.sum() / traffic.prompt_tokens.sum())
    assert found.block_hit_ratio() == pytest.approx(hits.sum() / (traffic.prompt_tokens // 64).sum())
    assert found.request_hit_ratio() == pytest.approx((traffic.prompt_tokens >= 64).mean())
    late = traffic.arrival_ns > 200 * 10**9
    assert outcome_of(traffic, hits * late).token_hit_ratio(~late) == 0.0
    assert outcome_of(traffic, hits * late).token_hit_ratio(late) > found.token_hit_ratio() * 0.8


def test_the_worst_model_is_the_one_that_found_least(traffic):
    hits = np.where(traffic.model == 2, 0, traffic.prompt_blocks)
    found = outcome_of(traffic, hits)
    ratios = found.model_hit_ratios()
    assert found.worst_model() == ratios[2] == 0.0
    assert found.fairness() == pytest.approx(0.8, abs=0.001)  # four of five have the same


def test_fairness_is_one_when_all_have_the_same_and_one_part_when_one_has_all():
    assert jain([2.0, 2.0, 2.0]) == 1.0
    assert jain([0.0, 5.0, 0.0, 0.0]) == 0.25
    assert jain([0.0, 0.0]) == 1.0

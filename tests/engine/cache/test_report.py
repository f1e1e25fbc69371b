"""What the cache tells of itself: ratios that add up, and the prefixes that saved most."""

import pytest

from engine.cache import BlockChain, Carrier, PrefixCache, figures, most_shared, tables
from engine.settings import GIB, CacheSettings, TierSettings
from engine.telemetry import Meter
from sim.world import SimClock

BLOCK = 1 << 10
TOKENS = 4


@pytest.fixture
def cache():
    tiers = {"ram": TierSettings(gib=6 * BLOCK / GIB), "ssd": TierSettings(gib=60 * BLOCK / GIB)}
    return PrefixCache(CacheSettings(block_tokens=TOKENS, **tiers))


def ask(cache, model, tokens, tenant=""):
    """A request whose prompt is these blocks, each of one number, and one token more."""
    space = cache.space(f"{model}@1.0.0", "w", tenant, BLOCK)
    names = BlockChain(space.digest, TOKENS)
    names.extend([token for token in tokens for _ in range(TOKENS)])
    with cache.find(space, names.keys, len(tokens) * TOKENS + 1):
        cache.keep(space, names.keys)


def test_ratios_are_of_tokens_of_full_blocks_and_of_requests(cache):
    ask(cache, "a", [1, 2, 3])
    ask(cache, "a", [1, 2, 9])
    found = tables(cache)["all"]
    assert found["token_hit_ratio"] == 8 / 26
    assert found["block_hit_ratio"] == 2 / 6
    assert found["request_hit_ratio"] == 1 / 2
    assert (found["inserted_blocks"], found["refused_blocks"]) == (4, 0)


def test_models_and_tenants_are_told_apart_and_the_worst_is_named(cache):
    for _ in range(2):
        ask(cache, "good", [1, 2], tenant="t")
    ask(cache, "bad", [1, 2], tenant="u")
    found = tables(cache)
    assert found["by_model"]["good@1.0.0"]["token_hit_ratio"] == 8 / 18
    assert found["by_tenant"]["u"]["token_hit_ratio"] == 0
    assert (found["worst_model"], found["worst_model_token_hit_ratio"]) == ("bad@1.0.0", 0)
    assert found["jain_index_of_models"] == 0.5


def test_nothing_asked_has_no_ratios(cache):
    found = tables(cache)
    assert found["all"]["token_hit_ratio"] is None
    assert found["jain_index_of_models"] is None
    assert found["worst_model"] is None


def test_hits_and_moves_are_told_by_tier(cache):
    for start in (1, 11, 1):
        ask(cache, "a", range(start, start + 5))
    tiers = tables(cache)["all"]["by_tier"]
    assert tiers["ssd"]["demoted_blocks"] > 0
    assert tiers["ssd"]["promoted_blocks"] == tiers["ssd"]["hit_blocks"] > 0
    assert tables(cache)["tiers"]["ram"]["by_model_bytes"] == {"a@1.0.0": 6 * BLOCK}


def test_the_prefixes_that_saved_most_are_told_with_what_they_saved(cache):
    for own in range(10, 15):
        ask(cache, "a", [1, 2, own])
    ask(cache, "a", [7])
    first, *others = most_shared(cache)
    assert (first.model, first.tokens, first.reads, first.saved_tokens) == ("a@1.0.0", 8, 4, 32)
    assert not others


def test_a_prefix_s_reads_outlive_the_tails_that_were_read(cache):
    for tokens in ([1, 2], [1, 2, 3], [1, 2, 3, 4]):
        ask(cache, "a", tokens)
    before = most_shared(cache)
    cache.unwritten(cache.table.slots[list(cache.table.slots)[-1]], cache.tiers[0])
    assert sum(each.reads for each in most_shared(cache)) == sum(each.reads for each in before)


def test_a_scrape_has_the_figures_by_model_and_tier(cache):
    carrier = Carrier(cache, SimClock())
    cache.mover = None
    for _ in range(2):
        ask(cache, "a", [1, 2])
    meter = Meter()
    meter.sources.append(lambda: figures(cache, carrier))
    text = meter.exposition()
    assert 'modelyard:cache_hit_tokens_total{model_name="a@1.0.0",tier="ram"} 8.0' in text
    assert f'modelyard:cache_bytes{{model_name="a@1.0.0",tier="ram"}} {2.0 * BLOCK}' in text
    assert 'vllm:kv_cache_usage_perc{tier="ram"} 0.33' in text

"""What the prefix cache costs: naming blocks, finding and holding the longest prefix, eviction when full."""

import numpy as np
import pytest

from engine.cache import BlockChain, PrefixCache, namespace
from engine.cache.cache import GIB
from engine.settings import CacheSettings

BLOCK_TOKENS = 16
BLOCK_BYTES = 1024
STORM_BLOCKS = 1_000


def chain(blocks, number=0):
    """The names of a chain of so many blocks."""
    tokens = np.random.default_rng(number).integers(0, 4096, blocks * BLOCK_TOKENS, dtype=np.int32)
    names = BlockChain(namespace("model", "1.0.0", "", BLOCK_TOKENS), BLOCK_TOKENS)
    names.extend(tokens)
    return names.keys


def make_cache(capacity_blocks, *chains):
    cache = PrefixCache(CacheSettings(ram_gib=capacity_blocks * BLOCK_BYTES / GIB))
    for keys in chains:
        cache.keep(keys, [None] * len(keys), BLOCK_BYTES)
    return cache


@pytest.mark.benchmark(group="frequent")
@pytest.mark.parametrize("blocks", [32, 512])
def test_match_full_hit(measure, blocks):
    keys = chain(blocks)
    cache = make_cache(4096, keys, *(chain(64, number) for number in range(1, 33)))
    assert measure(lambda: cache.match(keys)) == blocks


@pytest.mark.benchmark(group="frequent")
@pytest.mark.parametrize("blocks", [32, 512])
def test_match_first_block_miss(measure, blocks):
    keys = chain(blocks)
    cache = make_cache(4096, *(chain(64, number) for number in range(1, 33)))
    assert measure(lambda: cache.match(keys)) == 0


@pytest.mark.benchmark(group="frequent")
@pytest.mark.parametrize("blocks", [32, 512])
def test_fetch_and_unpin(measure, blocks):
    keys = chain(blocks)
    cache = make_cache(4096, keys)

    def fetch_and_unpin():
        with cache.fetch(keys, blocks * BLOCK_TOKENS + 1) as prefix:
            return len(prefix)

    assert measure(fetch_and_unpin, calls=1_000 if blocks < 100 else 50) == blocks
    cache.check_integrity()


@pytest.mark.benchmark(group="frequent")
def test_block_hash(measure):
    """`each_us` is of one block, of a prompt of 256 blocks."""
    blocks, start = 256, namespace("model", "1.0.0", "", BLOCK_TOKENS)
    tokens = np.random.default_rng(0).integers(0, 4096, blocks * BLOCK_TOKENS, dtype=np.int32)

    def name_blocks():
        names = BlockChain(start, BLOCK_TOKENS)
        names.extend(tokens)
        return names.keys

    assert len(measure(name_blocks, calls=20, units=blocks)) == blocks


@pytest.mark.benchmark(group="targeted")
def test_eviction_storm(measure):
    """Two chains that do not fit together take turns; `each_us` is of a block kept and one evicted for it."""
    one, other = chain(STORM_BLOCKS, 1), chain(STORM_BLOCKS, 2)
    payloads = [None] * STORM_BLOCKS
    cache = make_cache(STORM_BLOCKS, one)

    def storm():
        cache.keep(other, payloads, BLOCK_BYTES)
        cache.keep(one, payloads, BLOCK_BYTES)

    measure(storm, calls=2, units=2 * STORM_BLOCKS)
    assert cache.match(one) == STORM_BLOCKS
    cache.check_integrity()

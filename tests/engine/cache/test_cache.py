"""The prefix cache: prefix-closed, never over its capacity, and never at the cost of what is in use."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.cache import BlockChain, PrefixCache
from engine.cache.cache import GIB
from engine.errors import BadSettings, UnknownName
from engine.settings import CacheSettings

SIZE = 1 << 10  # bytes of a block
TOKENS = 2  # of a block


def make(blocks=100, **options):
    return PrefixCache(CacheSettings(ram_gib=blocks * SIZE / GIB, block_tokens=TOKENS, **options))


def chain(*tokens):
    """The names of the blocks of a sequence in which each block is one number, twice."""
    names = BlockChain(b"0" * 16, TOKENS)
    names.extend(np.repeat(np.array(tokens, dtype=np.int32), TOKENS))
    return names.keys


def keep(cache, keys, known=0):
    cache.keep(keys, [f"KV {number}" for number in range(known, len(keys))], SIZE)
    cache.check_integrity()


def walk(cache, keys):
    """How far a naive walk gets."""
    return next((index for index, key in enumerate(keys) if key not in cache._blocks), len(keys))


def test_what_was_kept_is_found_with_its_payloads():
    cache, keys = make(), chain(1, 2, 3)
    keep(cache, keys)
    with cache.fetch(keys, 100) as prefix:
        assert (len(prefix), prefix.num_tokens) == (3, 6)
        assert prefix.payloads == ["KV 0", "KV 1", "KV 2"]
    assert (len(cache), cache.used_bytes) == (3, 3 * SIZE)


def test_a_chain_is_found_as_far_as_it_is_shared():
    cache = make()
    keep(cache, chain(1, 2, 3))
    assert cache.match(chain(1, 2, 9, 3)) == 2
    assert cache.match(chain(2, 3)) == 0
    assert cache.match([]) == 0


@pytest.mark.parametrize("held", range(8))
@pytest.mark.parametrize("asked", range(8))
def test_bisection_finds_what_a_naive_walk_finds(held, asked):
    cache = make()
    keep(cache, chain(*range(held)))
    keys = chain(*range(asked))
    assert cache.match(keys) == walk(cache, keys) == min(held, asked)


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3)])
def test_one_token_at_least_is_left_to_prefill(num_tokens, expected):
    cache, keys = make(), chain(1, 2, 3)
    keep(cache, keys)
    with cache.fetch(keys[: num_tokens // TOKENS], num_tokens) as prefix:
        assert len(prefix) == min(expected, num_tokens // TOKENS)


def test_the_tail_leaves_before_the_head():
    cache, old = make(4), chain(1, 2, 3, 4)
    keep(cache, old)
    keep(cache, chain(7))
    assert [walk(cache, old), cache.match(old)] == [3, 3]
    keep(cache, chain(7, 8))
    assert cache.match(old) == 2


def test_whoever_was_used_last_leaves_last():
    cache = make(4)
    keep(cache, chain(1, 2))
    keep(cache, chain(5, 6))
    with cache.fetch(chain(1, 2), 100):
        pass
    keep(cache, chain(9))
    assert [cache.match(chain(1, 2)), cache.match(chain(5, 6))] == [2, 1]


def test_what_is_in_use_never_leaves():
    cache, used = make(3), chain(1, 2)
    keep(cache, used)
    with cache.fetch(used, 100):
        keep(cache, chain(5, 6, 7))
        assert [cache.match(used), cache.match(chain(5, 6, 7))] == [2, 1]
    keep(cache, chain(5, 6, 7))
    assert cache.match(chain(5, 6, 7)) == 3
    assert cache.match(used) == 0


def test_two_users_of_one_prefix_both_hold_it():
    cache, keys = make(1), chain(1)
    keep(cache, keys)
    first, second = cache.fetch(keys, 100), cache.fetch(keys, 100)
    first.__exit__()
    keep(cache, chain(2))
    assert cache.match(keys) == 1
    second.__exit__()
    keep(cache, chain(2))
    assert cache.match(keys) == 0


def test_a_chain_longer_than_the_cache_is_kept_as_far_as_it_fits():
    cache, keys = make(3), chain(*range(10))
    keep(cache, keys)
    assert (cache.match(keys), cache.used_bytes) == (3, cache.capacity_bytes)


def test_nobody_leaves_for_a_block_that_is_larger_than_the_cache():
    cache, keys = make(4), chain(1, 2, 3)
    keep(cache, keys)
    cache.keep(chain(9), [None], 5 * SIZE)
    cache.check_integrity()
    assert cache.match(keys) == 3


def test_nobody_leaves_for_a_block_that_does_not_fit_beside_what_is_in_use():
    cache, used, idle = make(4), chain(1, 2), chain(5, 6)
    keep(cache, used)
    keep(cache, idle)
    with cache.fetch(used, 100):
        cache.keep(chain(9), [None], 3 * SIZE)
        assert cache.match(idle) == 2
    cache.keep(chain(9), [None], 3 * SIZE)
    cache.check_integrity()
    assert cache.match(chain(9)) == 1


def test_a_tail_whose_head_has_left_is_not_kept():
    cache, keys = make(2), chain(1, 2, 3)
    keep(cache, keys[:2])
    keep(cache, chain(8, 9))
    keep(cache, keys, known=2)
    assert cache.match(keys) == 0
    assert cache.match(chain(8, 9)) == 2


def test_a_block_that_is_there_keeps_its_payload():
    cache, keys = make(), chain(1)
    cache.keep(keys, ["first"], SIZE)
    cache.keep(keys, ["second"], SIZE)
    assert cache.fetch(keys, 100).payloads == ["first"]
    assert cache.used_bytes == SIZE


@pytest.mark.parametrize("cache", [make(0), make(enabled=False), make(0.5)])
def test_a_cache_without_room_or_switched_off_stays_empty(cache):
    keep(cache, chain(1, 2))
    assert len(cache) == cache.used_bytes == 0
    with cache.fetch(chain(1, 2), 100) as prefix:
        assert prefix.num_tokens == 0


def test_a_policy_that_does_not_exist_or_does_not_fit_is_refused():
    with pytest.raises(UnknownName, match="no eviction policy is called 'mru'"):
        make(eviction="mru")
    with pytest.raises(BadSettings, match="eviction policy 'lru' does not take these options"):
        make(options={"halves": 2})


@pytest.mark.parametrize("breakage", ["bytes", "pinned", "references", "closure", "victims"])
def test_the_integrity_check_sees_each_breach(breakage):
    cache, keys = make(), chain(1, 2)
    keep(cache, keys)
    if breakage == "bytes":
        cache.used_bytes += 1
    elif breakage == "pinned":
        cache._pinned_bytes += 1
    elif breakage == "references":
        cache._blocks[keys[0]].references = -1
    elif breakage == "closure":
        cache.used_bytes -= cache._blocks.pop(keys[0]).size_bytes
    else:
        cache._policy.forget(keys[0])
    with pytest.raises(AssertionError):
        cache.check_integrity()


def test_lru_hits_as_often_as_theory_says():
    """Che's approximation for Zipf(1.0) over 10,000 objects and 500 places: .58674."""
    objects, places, requests, warmup = 10_000, 500, 200_000, 20_000
    weights = 1 / np.arange(1, objects + 1)
    drawn = np.random.default_rng(1).choice(objects, requests, p=weights / weights.sum()).tolist()
    cache, hits = make(places), 0
    keys = [[number.to_bytes(16, "little")] for number in range(objects)]
    for count, number in enumerate(drawn):
        with cache.fetch(keys[number], TOKENS + 1) as prefix:
            hits += len(prefix) if count >= warmup else 0
            if not len(prefix):
                cache.keep(keys[number], [None], SIZE)
    assert hits / (requests - warmup) == pytest.approx(0.58674, abs=0.01)
    assert len(cache) == places


CHAINS = [
    chain(*tokens)
    for tokens in (
        [1, 2, 3, 4, 5],
        [1, 2, 3, 9],
        [1, 2, 8, 7, 6, 5],
        [1, 6],
        [2, 3, 4],
        [2, 3, 5, 6],
        [7],
        [8, 8, 8],
    )
]


class CacheMachine(RuleBasedStateMachine):
    """The cache against a list of names in the order of their last use, and a plain count of references."""

    @initialize(blocks=st.integers(0, 10))
    def begin(self, blocks):
        self.cache, self.blocks = make(blocks), blocks
        self.line, self.references, self.prefixes = [], {}, []

    def pin(self, key):
        if self.references[key] == 0:
            self.line.remove(key)
        self.references[key] += 1

    def unpin(self, keys):
        for key in reversed(keys):
            self.references[key] -= 1
            if self.references[key] == 0:
                self.line.append(key)

    @rule(keys=st.sampled_from(CHAINS), num_tokens=st.integers(1, 14))
    def fetch(self, keys, num_tokens):
        keys = keys[: num_tokens // TOKENS]
        expected = []
        for key in keys[: (num_tokens - 1) // TOKENS]:
            if key not in self.references:
                break
            expected.append(key)
        prefix = self.cache.fetch(keys, num_tokens)
        assert prefix.num_tokens == len(expected) * TOKENS
        assert prefix.payloads == expected
        for key in expected:
            self.pin(key)
        self.prefixes.append((prefix, expected))

    @precondition(lambda self: self.prefixes)
    @rule(data=st.data())
    def leave(self, data):
        prefix, keys = self.prefixes.pop(data.draw(st.integers(0, len(self.prefixes) - 1)))
        prefix.__exit__()
        self.unpin(keys)

    @rule(keys=st.sampled_from(CHAINS), length=st.integers(0, 6), known=st.integers(0, 6))
    def keep(self, keys, length, known):
        keys = keys[:length]
        known = min(known, len(keys))
        self.cache.keep(keys, keys[known:], SIZE)
        held = []
        for index, key in enumerate(keys):
            if key not in self.references:
                if len(self.references) == self.blocks and self.line and index >= known:
                    del self.references[self.line.pop(0)]
                if index < known or len(self.references) == self.blocks:
                    break
                self.references[key] = 0
                self.line.append(key)
            self.pin(key)
            held.append(key)
        self.unpin(held)

    @invariant()
    def cache_and_oracle_agree(self):
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        assert set(self.cache._blocks) == set(self.references)
        assert self.cache.used_bytes == len(self.references) * SIZE
        for keys in CHAINS:
            assert self.cache.match(keys) == walk(self.cache, keys)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

"""The cache against naive oracles: plain dictionaries and lists that say what must be there, and in which order."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.cache import BlockChain, PrefixCache, allocation, orders
from engine.settings import GIB, TIERS, CacheSettings, LimitSettings, TierSettings

SIZE = 1 << 10
TOKENS = 2
MODELS = {"a@1.0.0": 1, "b@1.0.0": 2, "c@1.0.0": 3}  # blocks of one, two and three times the size
TENANTS = ("", "t")
PROMPTS = (
    [1, 2, 3, 4, 5],
    [1, 2, 3, 9],
    [1, 2, 8, 7, 6, 5],
    [1, 6],
    [2, 3, 4],
    [2, 3, 5, 6],
    [7],
    [8, 8, 8],
)


def tier(blocks, **options):
    return TierSettings(gib=blocks * SIZE / GIB, **options)


class CacheMachine(RuleBasedStateMachine):
    """Anything at any time. What is found must have been kept, by the same model and tenant, with its payload."""

    @initialize(
        blocks=st.lists(st.integers(0, 12), min_size=1, max_size=3),
        write=st.sampled_from(["back", "through", "second_use"]),
        inclusive=st.booleans(),
        eviction=st.sampled_from(sorted(orders.names())),
        dividing=st.sampled_from(sorted(allocation.names())),
        limited=st.booleans(),
        headroom=st.sampled_from([0.0, 0.2]),
    )
    def begin(self, blocks, write, inclusive, eviction, dividing, limited, headroom):
        tiers = {name: tier(size, write=write) for name, size in zip(TIERS, blocks, strict=False)}
        limits = [
            LimitSettings(tier="gpu", gib=4 * SIZE / GIB, tenant="t"),
            LimitSettings(tier="gpu", gib=5 * SIZE / GIB, model="b", when_full="refuse"),
        ]
        options = {"inclusive": inclusive, "eviction": eviction, "allocation": dividing, "headroom": headroom}
        self.cache = PrefixCache(
            CacheSettings(
                block_tokens=TOKENS, limits=limits if limited else [], **{"ram": None, **tiers}, **options
            )
        )
        self.kept, self.prefixes, self.now_ns, self.stamp = {}, [], 0, 0

    def space(self, model, tenant):
        return self.cache.space(model, "w", tenant, SIZE * MODELS[model])

    def chain(self, space, prompt):
        names = BlockChain(space.digest, TOKENS)
        names.extend(np.repeat(np.array(prompt, dtype=np.int32), TOKENS))
        return names.keys

    @rule(
        model=st.sampled_from(list(MODELS)), tenant=st.sampled_from(TENANTS), prompt=st.sampled_from(PROMPTS)
    )
    def ask(self, model, tenant, prompt):
        space = self.space(model, tenant)
        keys = self.chain(space, prompt)
        prefix = self.cache.find(space, keys, len(keys) * TOKENS + 1, self.now_ns)
        assert sum(prefix.blocks_by_tier) == prefix.num_blocks <= len(keys)
        found = prefix.payloads()
        for key, payload in zip(keys, found, strict=False):
            assert payload is None or payload == self.kept[key]
        self.prefixes.append((prefix, space, keys))

    @precondition(lambda self: self.prefixes)
    @rule(which=st.integers(0, 100), keeps=st.booleans())
    def answer(self, which, keeps):
        prefix, space, keys = self.prefixes.pop(which % len(self.prefixes))
        assert self.cache.table.match(keys, len(keys)) >= prefix.num_blocks  # nothing in use has left
        with prefix:
            if keeps:
                self.stamp += 1
                known = prefix.num_blocks
                payloads = [(self.stamp, key) for key in keys[known:]]
                before = {key: self.cache.table.slots.get(key) for key in keys[known:]}
                self.cache.keep(space, keys, payloads, self.now_ns)
                for key, payload in zip(keys[known:], payloads, strict=True):
                    if before[key] is None and key in self.cache.table.slots:
                        self.kept[key] = payload
                    elif key in self.cache.table.slots:
                        self.kept[key] = self.payload(key) or self.kept[key]

    def payload(self, key):
        slot = self.cache.table.slots[key]
        return self.cache.tiers[self.cache.table.home[slot]].payloads.get(slot)

    @rule(which=st.integers(0, 1000))
    def lose(self, which):
        slots = list(self.cache.table.slots.values())
        if slots:
            self.cache.lose(slots[which % len(slots)])

    @rule(model=st.sampled_from(list(MODELS)))
    def drop(self, model):
        self.cache.drop_model(model)

    @rule(ms=st.integers(0, 3000))
    def wait(self, ms):
        self.now_ns += ms * 1_000_000

    @invariant()
    def books_add_up_and_payloads_are_where_their_blocks_are(self):
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        for key, slot in self.cache.table.slots.items():
            if slot not in self.cache.hollow:
                assert self.payload(key) == self.kept[key]


TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class Stack:
    """LRU in the plainest way; a prompt is touched tail first, so its head leaves last."""

    def __init__(self, blocks):
        self.blocks, self.line = blocks, OrderedDict()

    def ask(self, keys):
        """How many leading blocks are there; then all are."""
        hits = next((index for index, key in enumerate(keys) if key not in self.line), len(keys))
        for key in reversed(keys):
            self.line[key] = None
            self.line.move_to_end(key)
        while len(self.line) > self.blocks:
            self.line.popitem(last=False)
        return hits


def zipf(number, count, seed, exponent=1.0):
    weights = 1 / np.arange(1, number + 1) ** exponent
    return np.random.default_rng(seed).choice(number, count, p=weights / weights.sum())


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(50,), (20, 80), (50, 200, 400), (10, 20, 40, 80, 160)])
def test_tiers_are_one_lru_stack_request_by_request(sizes):
    """With single blocks and LRU, tiers of C1, C2, ... hit where stacks of C1, C1 + C2, ... do."""
    tiers = {name: tier(size) for name, size in zip(TIERS, sizes, strict=False)}
    cache = PrefixCache(CacheSettings(block_tokens=TOKENS, **{"ram": None, **tiers}))
    space = cache.space("a@1.0.0", "w", "", SIZE)
    stacks = [Stack(sum(sizes[: index + 1])) for index in range(len(sizes))]
    for number in zipf(1_000, 20_000, 3).tolist():
        keys = [number.to_bytes(16, "little")]
        with cache.find(space, keys, TOKENS + 1) as prefix:
            cache.keep(space, keys)
        reached = [sum(prefix.blocks_by_tier[: index + 1]) for index in range(len(sizes))]
        assert reached == [stack.ask(keys) for stack in stacks]
    cache.check_integrity()


@pytest.mark.parametrize("dividing", ["shared", "dynamic"])
def test_chains_under_lru_are_a_plain_lru_of_blocks(dividing):
    """One model, one tier: block by block what the naive cache has, although only the ends of prompts are touched."""
    cache = PrefixCache(CacheSettings(block_tokens=TOKENS, ram=tier(60), allocation=dividing))
    space, stack = cache.space("a@1.0.0", "w", "", SIZE), Stack(60)
    random = np.random.default_rng(5)
    for session in zipf(40, 4_000, 4, 0.7).tolist():
        length = int(random.integers(1, 12))
        keys = [
            (session % 7 * 100 + index if index < 3 else session * 1000 + index).to_bytes(16, "little")
            for index in range(length)
        ]
        with cache.find(space, keys, length * TOKENS + 1) as prefix:
            cache.keep(space, keys)
        assert prefix.num_blocks == stack.ask(keys)
        assert set(cache.table.slots) == set(stack.line)

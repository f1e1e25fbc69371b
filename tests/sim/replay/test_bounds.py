from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.replay import clairvoyant, endless, replay_reference
from sim.replay.bounds import next_wanted
from sim.replay.reference import PlainLFU, PlainLRU
from sim.traffic import Chains, MixWorkload
from sim.traffic.mixes import chains

TREE = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 4], 5: [5], 6: [5, 6], 7: [5, 6, 7]}


def made_of(rows, prompt_blocks=None):
    """Chains of 10 tokens a block, a second apart."""
    length = np.array([len(row) for row in rows])
    looked = length if prompt_blocks is None else np.array(prompt_blocks)
    none = np.zeros(len(rows), np.int32)
    return Chains(
        arrival_ns=np.arange(len(rows)) * 10**9,
        model=none,
        tenant=none,
        session=none,
        turn=none,
        prompt_tokens=(10 * looked).astype(np.int32),
        output_tokens=none,
        run_end=np.cumsum(length),
        run_first=np.concatenate(rows).astype(np.int64),
        run_blocks=np.ones(int(length.sum()), np.int32),
        block_tokens=10,
        models=("m",),
        source="test",
    )


def best_possible(rows, capacity):
    """The most hits of any sequence of decisions, by trying them all: what is kept is a set closed under prefixes."""
    states = {frozenset(): 0}
    for row in rows:
        after = {}
        for held, hits in states.items():
            count = 0
            while count < len(row) and row[count] in held:
                count += 1
            offered = held | set(row)
            for size in range(min(capacity, len(offered)) + 1):
                for kept in map(frozenset, combinations(sorted(offered), size)):
                    after[kept] = max(after.get(kept, 0), hits + count)
        states = after
    return max(states.values())


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(TREE)), min_size=1, max_size=8), capacity=st.integers(1, 3))
def test_nobody_can_find_more_than_the_clairvoyant(names, capacity):
    rows = [TREE[name] for name in names]
    assert clairvoyant(made_of(rows), capacity).hits.sum() == best_possible(rows, capacity)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(TREE)), min_size=1, max_size=30), capacity=st.integers(1, 6))
def test_plain_caches_stay_below_the_bounds(names, capacity):
    made = made_of([TREE[name] for name in names])
    bound = clairvoyant(made, capacity).hits.sum()
    assert bound <= endless(made).hits.sum()
    for make in (PlainLRU, PlainLFU):
        assert replay_reference(made, capacity, make).hits.sum() <= bound


def test_an_endless_cache_finds_all_that_was_left_behind_and_no_more():
    made = made_of([[1, 2, 3], [1, 2, 3, 4], [1, 9], [1, 9, 10]], prompt_blocks=[2, 4, 2, 1])
    assert endless(made).hits[:, 0].tolist() == [0, 3, 1, 1]


def test_a_block_is_wanted_next_by_a_prompt_and_not_by_an_answer():
    made = made_of([[1, 2], [1, 2], [1, 2], [5]], prompt_blocks=[2, 1, 2, 1])
    names, ends = made.flat()
    assert next_wanted(made, names, ends).tolist() == [1, 2, 2, 2, 4, 4, 4]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_next_request_that_wants_a_block_is_found_as_by_looking(seed):
    made = chains(MixWorkload(duration_s=20), seed)
    names, ends = made.flat()
    wanted, upcoming = [], {}
    for index in reversed(range(len(made))):
        chain = made.chain(index)
        wanted[:0] = [upcoming.get(block, len(made)) for block in chain]
        upcoming.update(dict.fromkeys(chain[: made.prompt_blocks[index]], index))
    assert next_wanted(made, names, ends).tolist() == wanted

"""The prefix index against sets of prefixes."""

from random import Random

import pytest

from engine.routing.prefixes import PrefixIndex


def test_it_agrees_with_a_table_of_all_prefixes():
    index, random = PrefixIndex(1 << 20), Random(1)  # noqa: S311  seeded
    known: dict[bytes, int] = {}
    for _ in range(3000):
        path = [random.randrange(2) for _ in range(random.randrange(1, 9))]
        keys = [bytes(path[: place + 1]) for place in range(len(path))]
        held = [place for place, key in enumerate(keys, 1) if key in known]
        assert index.match(keys) == max(held, default=0)
        for bit in (1, 2, 4):
            own = [place for place, key in enumerate(keys, 1) if known.get(key, 0) & bit]
            assert index.depth_of(keys, bit, index.match(keys)) == max(own, default=0)
        if random.random() < 0.05:
            bit = 1 << random.randrange(3)
            for key in keys:
                known[key] = known.get(key, 0) | bit
            index.record(keys, bit)
        if random.random() < 0.002:
            index.forget(1)
            known = {key: mask & ~1 for key, mask in known.items() if mask & ~1}
    assert all(index.holders(key) == mask for key, mask in known.items())


def test_it_is_bounded_and_keeps_what_is_asked_for(chain):
    index = PrefixIndex(200)
    hot = chain("hot", 10)
    for number in range(500):
        index.record(hot, 1)
        index.record(chain(f"cold {number}", 10), 2)
        assert len(index) <= 210
        assert index.match(hot) == 10
    assert index.match(chain("cold 0", 10)) == 0
    assert index.num_rotations > 10


def test_who_held_a_prefix_in_an_older_generation_still_does(chain):
    index, hot = PrefixIndex(100), chain("hot", 10)
    index.record(hot, 1)
    for number in range(5):
        index.record(chain(f"cold {number}", 10), 4)
    assert index.num_rotations == 1
    index.record(hot, 2)
    assert index.num_rotations == 1
    for number in range(5, 9):
        index.record(chain(f"cold {number}", 10), 4)
    assert index.num_rotations == 2
    assert index.holders(hot[-1]) == 3


def test_a_prefix_longer_than_the_index_is_cut(chain):
    index = PrefixIndex(20)
    keys = chain("long", 1000)
    index.record(keys, 1)
    assert len(index) <= 20
    assert index.match(keys) == 10


@pytest.mark.parametrize("blocks", [1, 2, 31, 32, 33])
def test_every_length_of_match_is_found(chain, blocks):
    index, keys = PrefixIndex(1000), chain("p", 40)
    index.record(keys[:blocks], 1)
    assert index.match(keys) == blocks
    assert index.match(keys[:blocks]) == blocks
    assert index.match(keys[: max(1, blocks - 1)]) == max(1, blocks - 1)

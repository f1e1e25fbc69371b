"""Names of blocks in one model, remembered by those that all models share."""

import pytest

from engine.cache import BlockNames


def names(first, count, own=b"o"):
    shared = [b"s%d" % number for number in range(first, first + count)]
    return shared, [own + each for each in shared]


def test_what_was_learned_is_found_block_by_block():
    known = BlockNames()
    shared, own = names(0, 5)
    known.learn(shared, own)
    assert known.of(shared) == own
    assert known.of(shared[:3]) == own[:3]
    assert known.of([*shared, b"another"]) == own


def test_a_longer_prefix_adds_what_is_new():
    known = BlockNames()
    shared, own = names(0, 8)
    known.learn(shared[:5], own[:5])
    known.learn(shared, own)
    assert known.of(shared) == own
    assert len(known) == 8


@pytest.mark.parametrize("length", [1, 3, 50])
def test_there_is_never_more_than_there_is_room_for(length):
    known = BlockNames(capacity=20)
    for number in range(40):
        shared, own = names(100 * number, length)
        known.learn(shared, own)
        assert len(known) <= 20
        assert length > 20 or known.of(shared) == own
    assert b"s0" not in known


def test_two_prompts_with_one_head_share_its_names():
    known = BlockNames()
    head, own_head = names(0, 4)
    tail, own_tail = names(50, 2)
    known.learn([*head, b"x"], [*own_head, b"ox"])
    known.learn([*head, *tail], [*own_head, *own_tail])
    assert known.of([*head, *tail]) == [*own_head, *own_tail]
    assert known.of([*head, b"x"]) == [*own_head, b"ox"]

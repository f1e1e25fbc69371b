"""Every eviction policy: the victim is always a block that is held."""

from random import Random

import pytest

from engine.cache import eviction
from engine.errors import UnknownName


@pytest.fixture(params=eviction.names())
def policy(request):
    return eviction.make(request.param)


def key(number):
    return number.to_bytes(16, "little")


@pytest.mark.parametrize("seed", range(3))
def test_the_victim_is_always_held(policy, seed):
    random, held = Random(seed), set()  # noqa: S311  seeded
    for _ in range(5_000):
        action = random.random()
        if action < 0.5 or not held:
            block = key(random.randrange(200))
            policy.touch(block)
            held.add(block)
        elif action < 0.8:
            block = random.choice(sorted(held))
            policy.forget(block)
            held.remove(block)
        else:
            victim = policy.victim()
            assert victim in held
            policy.forget(victim)
            held.remove(victim)
        assert len(policy) == len(held)


def test_asking_for_the_victim_moves_nobody(policy):
    for number in range(5):
        policy.touch(key(number))
    assert policy.victim() == policy.victim()
    assert len(policy) == 5


def test_a_policy_gives_up_every_block_once(policy):
    for number in [*range(100), *range(0, 100, 3)]:
        policy.touch(key(number))
    left = []
    while len(policy):
        left.append(policy.victim())
        policy.forget(left[-1])
    assert sorted(left) == sorted(map(key, range(100)))


def test_lru_gives_up_what_was_not_used_for_longest():
    policy = eviction.make("lru")
    for number in (1, 2, 3, 1):
        policy.touch(key(number))
    left = []
    while len(policy):
        left.append(policy.victim())
        policy.forget(left[-1])
    assert left == [key(2), key(3), key(1)]


def test_an_unknown_policy_is_answered_with_the_choices():
    with pytest.raises(UnknownName, match=r"no eviction policy is called 'mru'; choose from .*lru"):
        eviction.make("mru")

"""Room that is made before anybody needs it: those who have borrowed give, and nothing is lost for it."""

import pytest

from engine.cache import BlockChain, PrefixCache
from engine.settings import GIB, CacheSettings, TierSettings

SIZE = 1 << 10
TOKENS = 2


def tier(blocks):
    return TierSettings(gib=blocks * SIZE / GIB)


class World:
    def __init__(self, ram, ssd, dividing="shared"):
        settings = CacheSettings(ram=tier(ram), ssd=tier(ssd), block_tokens=TOKENS, allocation=dividing)
        self.cache, self.number = PrefixCache(settings), 0
        self.ram, self.ssd = self.cache.tiers

    def fill(self, model, blocks):
        space = self.cache.space(f"{model}@1.0.0", "w", "", SIZE)
        for _ in range(blocks):
            self.number += 1
            names = BlockChain(space.digest, TOKENS)
            names.extend([self.number] * TOKENS)
            self.cache.keep(space, names.keys, now_ns=self.number)
        return space

    def demote(self, free, most=1000):
        moved = self.cache.demote_ahead(self.ram, free * SIZE, most)
        self.cache.check_integrity()
        return moved


def held(space):
    return [num_bytes // SIZE for num_bytes in space.held_bytes]


@pytest.mark.parametrize("dividing", ["shared", "fair", "dynamic"])
def test_so_much_is_free_afterwards_and_every_block_is_still_there(dividing):
    world = World(10, 10, dividing)
    space = world.fill("a", 10)
    world.fill("b", 0)
    world.cache.balance(world.number)
    assert world.demote(4) == 4
    assert (held(space), len(world.cache)) == ([6, 4], 10)
    assert world.demote(4) == 0


def test_no_more_than_may_be_moved_at_a_time_is():
    world = World(10, 10)
    world.fill("a", 10)
    assert (world.demote(8, most=3), world.demote(8, most=3)) == (3, 3)


def test_what_a_model_is_sure_of_stays():
    world = World(10, 20, "fair")
    lender, borrower = world.fill("a", 2), world.fill("b", 8)
    world.cache.balance(world.number)
    assert world.demote(10) == 3
    assert (held(lender), held(borrower)) == ([2, 0], [5, 3])


def test_nothing_is_evicted_where_there_is_no_room_below():
    world = World(10, 3)
    world.fill("a", 13)
    assert len(world.cache) == 13
    assert world.demote(5) == 0
    assert len(world.cache) == 13


def test_the_last_tier_gives_nothing():
    world = World(10, 5)
    world.fill("a", 10)
    world.demote(5)
    assert world.cache.demote_ahead(world.ssd, 5 * SIZE, 100) == 0
    assert len(world.cache) == 10

"""What a model or a tenant may hold, in steps: choosier, then away ahead of need, then no more."""

import pytest

from engine.cache import BlockChain, PrefixCache
from engine.settings import GIB, CacheSettings, LimitSettings, TierSettings

SIZE = 1 << 10
TOKENS = 2
NO_STEPS = {"admit_from": 1, "compress_from": 1, "demote_from": 1}


class World:
    def __init__(self, *limits, ram=20, ssd=None, **options):
        tiers = {"ram": TierSettings(gib=ram * SIZE / GIB)}
        if ssd is not None:
            tiers["ssd"] = TierSettings(gib=ssd * SIZE / GIB)
        self.cache = PrefixCache(CacheSettings(block_tokens=TOKENS, limits=list(limits), **tiers, **options))

    def ask(self, number, model="a", tenant=""):
        space = self.cache.space(f"{model}@1.0.0", "w", tenant, SIZE)
        names = BlockChain(space.digest, TOKENS)
        names.extend([number] * TOKENS)
        with self.cache.find(space, names.keys, TOKENS + 1) as prefix:
            self.cache.keep(space, names.keys)
        self.cache.check_integrity()
        return prefix.num_blocks

    def there(self, numbers, model="a", tenant=""):
        space, found = self.cache.space(f"{model}@1.0.0", "w", tenant, SIZE), []
        for number in numbers:
            names = BlockChain(space.digest, TOKENS)
            names.extend([number] * TOKENS)
            if self.cache.match(names.keys):
                found.append(number)
        return found


def limit(blocks, tier="ram", **options):
    return LimitSettings(tier=tier, gib=blocks * SIZE / GIB, **{**NO_STEPS, **options})


def test_at_its_limit_a_model_gives_its_own_oldest():
    world = World(limit(3, model="a"))
    world.ask(100, model="b")
    for number in range(6):
        world.ask(number)
    assert world.there(range(6)) == [3, 4, 5]
    assert world.there([100], model="b") == [100]


def test_or_takes_no_more_where_that_is_the_rule():
    world = World(limit(3, model="a", when_full="refuse"))
    for number in range(6):
        world.ask(number)
    assert world.there(range(6)) == [0, 1, 2]


def test_from_the_first_step_on_only_what_is_wanted_twice_comes_in():
    world = World(limit(10, model="a", admit_from=0.5))
    for number in range(8):
        world.ask(number)
    assert world.there(range(8)) == [0, 1, 2, 3, 4]
    world.ask(7)
    assert world.there(range(8)) == [0, 1, 2, 3, 4, 7]


def test_before_the_limit_the_oldest_go_down_a_tier_ahead_of_need():
    world = World(limit(10, model="a", demote_from=0.5), ssd=20)
    for number in range(9):
        world.ask(number)
    ram, ssd = world.cache.tiers
    assert (ram.num_blocks, ssd.num_blocks) == (5, 4)
    assert world.there(range(9)) == list(range(9))


def test_a_limit_below_holds_what_comes_down():
    world = World(limit(2, tier="ssd", model="a"), ram=2, ssd=20)
    for number in range(8):
        world.ask(number)
    assert world.there(range(8)) == [4, 5, 6, 7]
    assert world.cache.tiers[1].num_blocks == 2


@pytest.mark.parametrize("dividing", ["shared", "fair", "dynamic"])
def test_a_tenant_is_limited_apart_from_others_of_the_same_model(dividing):
    world = World(limit(3, tenant="small"), allocation=dividing)
    for number in range(6):
        world.ask(number, tenant="small")
        world.ask(number, tenant="large")
    assert world.there(range(6), tenant="small") == [3, 4, 5]
    assert world.there(range(6), tenant="large") == list(range(6))


def test_a_pair_is_limited_and_neither_of_both_elsewhere():
    world = World(limit(2, model="a", tenant="t"))
    for number in range(4):
        for model, tenant in (("a", "t"), ("a", "u"), ("b", "t")):
            world.ask(number, model, tenant)
    held = [
        len(world.there(range(4), model, tenant)) for model, tenant in (("a", "t"), ("a", "u"), ("b", "t"))
    ]
    assert held == [2, 4, 4]


def test_what_is_held_under_a_limit_is_known_at_any_time():
    world = World(limit(5, model="a"), limit(4, tenant="t"))
    for number in range(9):
        world.ask(number, tenant="t")
        world.ask(number)
    of_tenant, of_others = len(world.there(range(9), tenant="t")), len(world.there(range(9)))
    held = [rule.held_bytes // SIZE for rule in world.cache.limits.rules]
    assert held == [of_tenant + of_others, of_tenant]
    assert held[0] <= 5
    assert held[1] <= 4


def test_the_steps_can_be_told_beforehand_whatever_others_hold():
    alone, crowded = (World(limit(4, model="a", admit_from=0.5)) for _ in range(2))
    for number in range(8):
        crowded.ask(1000 + number, model="b")
        assert alone.ask(number % 5) == crowded.ask(number % 5)
    assert alone.there(range(5)) == crowded.there(range(5))

"""Who is sure of what, who gives when room is needed, and what was learned of how soon blocks are wanted again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache import BlockChain, PrefixCache, allocation
from engine.cache.holders import Holder
from engine.cache.reuse import Reuse
from engine.errors import BadSettings, UnknownName
from engine.settings import GIB, CacheSettings, TierSettings

SIZE = 1 << 10
TOKENS = 2
SECOND_NS = 1_000_000_000


class World:
    def __init__(self, blocks, dividing, evicting="lru", **options):
        tier = TierSettings(gib=blocks * SIZE / GIB)
        settings = CacheSettings(
            ram=tier, block_tokens=TOKENS, allocation=dividing, allocation_options=options, eviction=evicting
        )
        self.cache, self.now_ns, self.number = PrefixCache(settings), 0, 0

    def space(self, model):
        return self.cache.space(f"{model}@1.0.0", "w", "", SIZE)

    def ask(self, model, blocks=1, number=None):
        """A prompt of its own, or one that has been there; how many of its blocks were found."""
        if number is None:
            self.number += 1
            number = self.number
        space = self.space(model)
        names = BlockChain(space.digest, TOKENS)
        names.extend([number] * blocks * TOKENS)
        with self.cache.find(space, names.keys, blocks * TOKENS + 1, self.now_ns) as prefix:
            self.cache.keep(space, names.keys, now_ns=self.now_ns)
        self.cache.check_integrity()
        return prefix.num_blocks

    def fill(self, model, blocks):
        for _ in range(blocks):
            self.ask(model)

    def held(self, model):
        return self.space(model).held_bytes[0] // SIZE

    def wait(self, seconds):
        self.now_ns += int(seconds * SECOND_NS)


def test_shared_gives_all_to_whoever_asks():
    world = World(10, "shared")
    world.fill("a", 10)
    world.fill("b", 10)
    assert (world.held("a"), world.held("b")) == (0, 10)


@pytest.mark.parametrize("dividing", ["fair", "dynamic", "proportional", "priority"])
def test_room_that_nobody_else_needs_is_lent(dividing):
    world = World(10, dividing)
    world.space("b")
    world.fill("a", 10)
    assert world.held("a") == 10


def test_fair_takes_back_what_was_lent_and_no_more():
    world = World(10, "fair")
    world.space("b")
    world.fill("a", 10)
    world.fill("b", 20)
    assert (world.held("a"), world.held("b")) == (5, 5)
    world.fill("a", 20)
    assert (world.held("a"), world.held("b")) == (5, 5)


def test_a_model_that_comes_later_gets_its_even_part():
    world = World(12, "fair")
    for model in ("a", "b", "c"):
        world.fill(model, 12)
    assert [world.held(model) for model in "abc"] == [4, 4, 4]


def test_proportional_follows_weights():
    world = World(10, "proportional", weights={"a": 4, "b": 1})
    for _ in range(20):
        world.ask("a")
        world.ask("b")
    assert (world.held("a"), world.held("b")) == (8, 2)


def test_proportional_follows_demand_and_forgets_by_its_half_life():
    world = World(20, "proportional", half_life_s=10.0)
    for _ in range(30):
        world.ask("a", 3)
        world.ask("b", 1)
    world.wait(2)
    world.ask("a", 3)
    world.ask("b", 1)
    assert world.cache.tiers[0].parts[0].sure_bytes == pytest.approx(15 * SIZE, rel=0.05)
    for _ in range(30):
        world.wait(10)
        world.ask("b", 3)
    assert world.cache.tiers[0].parts[0].sure_bytes < SIZE


def test_priority_keeps_floors_and_gives_the_rest_to_the_highest_class():
    options = {"classes": {"high": 0.2, "low": 0.2}, "members": {"a": "high", "b": "low"}}
    world = World(10, "priority", **options)
    world.fill("b", 10)
    world.fill("a", 20)
    assert (world.held("a"), world.held("b")) == (8, 2)
    world.fill("b", 20)
    assert (world.held("a"), world.held("b")) == (8, 2)


def test_dynamic_keeps_floors_under_a_flood():
    world = World(20, "dynamic", floor=0.5)
    world.fill("a", 10)
    world.wait(1000)
    world.fill("b", 100)
    assert world.held("a") == 5


def test_dynamic_prefers_what_is_dear_to_compute_for_its_size():
    world = World(20, "dynamic", floor=0.0)
    world.space("dear").holder.recompute_ns, world.space("cheap").holder.recompute_ns = 1000.0, 1.0
    world.fill("dear", 10)
    world.wait(5)
    world.fill("cheap", 100)
    assert (world.held("dear"), world.held("cheap")) == (10, 10)


def test_dynamic_among_equals_is_least_recently_used():
    world = World(10, "dynamic", floor=0.0)
    for _ in range(5):
        world.ask("a")
        world.wait(3)
        world.ask("b")
        world.wait(3)
    world.ask("a")
    assert (world.held("a"), world.held("b")) == (5, 5)
    world.ask("a")
    assert (world.held("a"), world.held("b")) == (6, 4)


def test_round_robin_takes_from_each_in_turn():
    world = World(10, "shared", "round_robin")
    world.fill("a", 6)
    world.fill("b", 4)
    world.fill("c", 4)
    assert [world.held(model) for model in "abc"] == [4, 3, 3]  # its own turn comes too


def test_smallest_takes_from_the_model_that_holds_least():
    world = World(10, "shared", "smallest")
    world.fill("a", 7)
    world.fill("b", 3)
    world.fill("a", 2)
    assert (world.held("a"), world.held("b")) == (9, 1)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("priority", {"classes": {"high": 0.8, "low": 0.4}}, "at most 1 together, but they are 1.2"),
        ("priority", {"members": {"a": "best"}}, "allocation.members.a is 'best', but must be one of high"),
        ("priority", {"classes": {}}, "at least one class"),
        ("proportional", {"weights": {"a": -1}}, "allocation.weights.a is -1, but must be at least 0"),
        ("proportional", {"half_life_s": 0}, "allocation.half_life_s is 0, but must be above 0"),
        ("proportional", {"half_life_s": "long"}, "half_life_s 'long', but it must be a number"),
        ("proportional", {"weights": {"a": "b"}}, "it must be a map from text to numbers"),
        ("priority", {"members": 3}, "members 3, but it must be a map from text to text"),
        ("dynamic", {"floor": None}, "floor None, but it must be a number"),
        ("dynamic", {"floor": 2}, "allocation.floor is 2, but must be from 0 to 1"),
        ("dynamic", {"floors": {"a": 0.7, "b": 0.7}}, "at most 1 together"),
        ("fair", {"weights": {}}, "allocation 'fair' does not take these options"),
    ],
)
def test_options_that_cannot_be_are_named(name, options, sentence):
    with pytest.raises(BadSettings, match=sentence):
        allocation.make(name, **options)


def test_an_allocation_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(UnknownName, match="no allocation is called 'even'; choose from dynamic, fair"):
        World(1, "even")


@given(
    name=st.sampled_from(sorted(allocation.names())),
    models=st.integers(1, 500),
    capacity=st.integers(0, 10**15),
    demand=st.floats(0, 1e18),
)
def test_nobody_is_promised_what_is_not_there(name, models, capacity, demand):
    holders = [
        Holder(f"m{n}@1.0.0", n, SIZE, 2.0, 1, Reuse(), demand_bytes=demand * n) for n in range(models)
    ]
    sure = allocation.make(name).sure_bytes(capacity, holders, 0)
    assert len(sure) == models
    assert min(sure) >= 0
    assert sum(sure) <= capacity


def test_the_chance_of_a_read_falls_with_age():
    reuse = Reuse()
    for age in range(1, 2000):
        reuse.read(age % 50)
        reuse.left(age)
    hazards = [reuse.hazard(age) for age in (0, 1, 5, 40, 300, 5000, 10**9)]
    assert hazards == sorted(hazards, reverse=True)
    assert len(set(hazards)) == len(hazards)


def test_what_came_back_was_not_given_up():
    early, late = Reuse(), Reuse()
    for reuse in (early, late):
        for _ in range(100):
            reuse.left(100)
    for _ in range(90):
        late.returned(100, 200)
    assert late.hazard(150) > early.hazard(150)


@pytest.mark.parametrize("dividing", ["fair", "proportional", "priority", "dynamic"])
@pytest.mark.parametrize("seed", [4, 5, 35, 38, 56])
def test_who_finds_no_room_above_has_its_own_again_although_others_have_come_there(dividing, seed):
    """Blocks of three sizes; those that are read stay, whoever is sure of the room that they need."""
    draw = random.Random(seed)  # noqa: S311
    tiers = {"gpu": TierSettings(gib=30 / GIB), "ram": TierSettings(gib=40 / GIB)}
    cache = PrefixCache(CacheSettings(**tiers, allocation=dividing, block_tokens=1))
    spaces = [cache.space(model, "w", "", size) for model, size in (("a", 2), ("b", 3), ("c", 7))]
    chains = [
        [[b"%d/%d/%d" % (model, chain, block) for block in range(draw.randint(1, 5))] for chain in range(4)]
        for model in range(3)
    ]
    reading = []
    for _ in range(400):
        model = draw.randrange(3)
        keys = draw.choice(chains[model])
        if draw.random() < 0.4:
            cache.keep(spaces[model], keys)
        else:
            reading.append(cache.find(spaces[model], keys, len(keys) + 1))
        while len(reading) > draw.randint(0, 3):
            reading.pop(draw.randrange(len(reading))).__exit__()
        cache.check_integrity()

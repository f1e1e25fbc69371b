"""Transfers in virtual time: a request waits for its own, others go on, and computing may be cheaper."""

from itertools import count
from typing import ClassVar

import numpy as np
import pytest

from engine.cache import BlockChain, Carrier, PrefixCache
from engine.engine import Engine
from engine.request import Request
from engine.settings import GIB, CacheSettings, LimitSettings, TierSettings
from engine.telemetry import Ended, PrefixFound
from sim.world import SimClock

BLOCK = 1 << 20
TOKENS = 16
MS = 1_000_000


def tier(blocks, **options):
    return TierSettings(gib=blocks * BLOCK / GIB, **{"queue_gib": 1.0, **options})


class Prefill:
    """So many ns a token."""

    def __init__(self, token_ns):
        self.token_ns = token_ns

    def prefill_ns(self, start, end):
        return (end - start) * self.token_ns


class World:
    made: ClassVar[list] = []

    def __init__(self, **cache):
        cache = {"ram": tier(10), "ssd": tier(100, gib_per_s=1.0), **cache}
        self.made.append(self)
        self.clock = SimClock()
        self.cache = PrefixCache(CacheSettings(block_tokens=TOKENS, **cache))
        self.carrier = Carrier(self.cache, self.clock)
        self.space = self.cache.space("llama@1.0.0", "w", "", BLOCK)

    def keep(self, seed, blocks=10):
        keys = self.chain(seed, blocks)
        self.cache.keep(self.space, keys, now_ns=self.clock.now_ns())
        self.cache.check_integrity()
        return keys

    def chain(self, seed, blocks=10):
        names = BlockChain(self.space.digest, TOKENS)
        names.extend(np.random.default_rng(seed).integers(1000, size=blocks * TOKENS, dtype=np.int32))
        return names.keys

    def rest(self):
        self.clock.env.run(until=self.clock.now_ns() + 10_000 * MS)

    def read(self, keys, token_ns=1_000_000):
        """Bring a prefix up; its blocks, what was decided, and how long that took in ms."""
        begun_ns = self.clock.now_ns()

        async def bring():
            num_tokens = len(keys) * TOKENS + 1
            with self.cache.find(self.space, keys, num_tokens, begun_ns) as prefix:
                decision = await self.carrier.bring(prefix, Prefill(token_ns), num_tokens)
                return prefix.num_blocks, decision, (self.clock.now_ns() - begun_ns) / MS

        return self.clock.spawn(bring())

    def now(self, keys, token_ns=1_000_000):
        answer = self.clock.env.run(until=self.read(keys, token_ns))
        self.cache.check_integrity()
        return answer


@pytest.fixture
def world():
    return World()


@pytest.fixture(autouse=True)
def worlds_end():
    yield
    while World.made:
        World.made.pop().clock.close()


def test_a_transfer_takes_its_latency_and_its_bytes_at_the_tier_s_pace():
    world = World(ssd=tier(100, gib_per_s=1.0, latency_s=0.002))
    old = world.keep(1)
    world.keep(2)
    world.rest()
    blocks, decision, took_ms = world.now(old)
    assert (blocks, decision.loaded_blocks) == (10, 10)
    assert took_ms == pytest.approx(2 + 10 * 1000 * BLOCK / GIB, rel=1e-6)


@pytest.mark.parametrize(("token_ns", "expected"), [(1_000_000, 10), (1_000, 0)])
def test_what_is_cheaper_is_done(world, token_ns, expected):
    old = world.keep(1)
    world.keep(2)
    world.rest()
    blocks, decision, took_ms = world.now(old, token_ns)
    assert (blocks, decision.loaded_blocks, decision.dropped_blocks) == (expected, expected, 10 - expected)
    assert (took_ms > 0) == (expected > 0)


@pytest.mark.parametrize(("load", "token_ns", "expected"), [("always", 1, 10), ("never", 10**9, 0)])
def test_the_choice_can_be_made_beforehand(load, token_ns, expected):
    world = World(load=load)
    old = world.keep(1)
    world.keep(2)
    world.rest()
    assert world.now(old, token_ns)[0] == expected


def test_who_wants_the_same_blocks_waits_for_the_same_transfer(world):
    old = world.keep(1)
    world.keep(2)
    world.rest()
    both = [world.read(old), world.read(old)]
    answers = [world.clock.env.run(until=each) for each in both]
    assert [blocks for blocks, _, _ in answers] == [10, 10]
    assert answers[0][2] == answers[1][2] > 0
    assert world.carrier.ways[1].num_reads == 1


def test_transfers_queue_on_their_way_and_reads_go_before_writes():
    world = World(ram=tier(20), ssd=tier(100, gib_per_s=1.0, concurrency=1))
    first, second = world.keep(1), world.keep(2)
    world.keep(3, 20)
    world.rest()
    both = [world.read(first), world.read(second)]
    one, two = (world.clock.env.run(until=each)[2] for each in both)
    assert two >= 2 * one * 0.99


def test_a_request_whose_blocks_are_on_their_way_down_does_not_wait_for_the_disk():
    world = World(ram=tier(20), ssd=tier(100, gib_per_s=0.001), load="always")
    old = world.keep(1)
    world.keep(2, 20)  # and the old ones are now being written, for ten seconds
    assert world.carrier.ways[1].queued_bytes == 10 * BLOCK
    assert world.now(old)[::2] == (10, 0)


def test_what_the_line_cannot_take_is_evicted():
    world = World(ssd=tier(100, gib_per_s=0.001, queue_gib=10 * BLOCK / GIB))
    chains = [world.keep(number) for number in range(4)]
    assert world.carrier.ways[1].queued_bytes <= 11 * BLOCK
    assert [world.cache.match(keys) for keys in chains] == [10, 0, 0, 10]


def test_a_disk_that_became_slow_is_not_waited_for_for_ever(world):
    old = world.keep(1)
    world.keep(2)
    world.rest()
    world.carrier.ways[1].gib_per_s = 1e-5  # what was learned of it says otherwise
    blocks, _, took_ms = world.now(old)
    assert blocks == 0
    assert took_ms < 1_000
    assert world.carrier.tally.given_up == 1


def test_expectations_follow_what_transfers_take(world):
    way = world.carrier.ways[1]
    before = way.expected_ns(BLOCK)
    for _ in range(50):
        way.learn(BLOCK, int(10 * before))
    assert way.expected_ns(BLOCK) == pytest.approx(10 * before, rel=0.01)


def test_a_wrong_decision_is_counted(world):
    old = world.keep(1)
    world.keep(2)
    world.rest()
    _, decision, _ = world.now(old)
    world.carrier.judge(decision, prefill_ns=1)
    assert (world.carrier.tally.loads, world.carrier.tally.loads_wrong) == (1, 0)
    world.carrier.judge(decision, prefill_ns=decision.other_ns + 1)
    assert (world.carrier.tally.loads, world.carrier.tally.loads_wrong) == (2, 1)


def test_prefetch_brings_a_chain_back_before_it_is_asked_for(world):
    old = world.keep(1)
    world.keep(2)
    world.rest()
    world.carrier.prefetch(world.space, old)
    world.rest()
    assert world.now(old)[2] == 0
    assert world.carrier.tally.prefetched_blocks == 10


def test_int8_takes_less_room_and_less_time():
    sizes, times = [], []
    for form in ("raw", "int8"):
        world = World(ssd=tier(100, gib_per_s=1.0, form=form))
        old = world.keep(1)
        world.keep(2)
        world.rest()
        sizes.append(world.cache.tiers[1].used_bytes)
        times.append(world.now(old)[2])
    assert sizes[0] / sizes[1] >= 1.9
    assert times[0] / times[1] >= 1.9


def test_near_its_limit_a_model_comes_down_as_int8():
    limit = LimitSettings(
        tier="ssd", gib=20 * BLOCK / GIB, model="llama", admit_from=1, compress_from=0.5, demote_from=1
    )
    world = World(limits=[limit])
    for number in range(4):
        world.keep(number)
    ssd = world.cache.tiers[1]
    assert set(ssd.sizes.values()) == {world.space.holder.form_bytes("int8")}
    assert 0 < len(ssd.sizes) < ssd.num_blocks


class Fleet:
    """The small fleet on the roofline executor, over memory and a slow disk."""

    def __init__(self, settings, **cache):
        World.made.append(self)
        self.settings, self.ids, self.ended = settings, count(), []
        settings.cache = CacheSettings(**cache)
        self.clock = SimClock()
        self.engine = Engine(settings, self.clock, [self])
        self.engine.start()

    def emit(self, event):
        if isinstance(event, Ended | PrefixFound):
            self.ended.append(event)

    def ask(self, seed, tokens=2048, new=4, session=None):
        prompt = np.random.default_rng(seed).integers(1000, size=tokens, dtype=np.int32)
        request = Request(next(self.ids), "llama", prompt, new, self.clock.now_ns(), session=session)
        return self.clock.spawn(self.engine.serve(request))


def test_others_go_on_while_one_waits_for_its_blocks(settings):
    mib = 2048 * 2 * 16 * 8 * 64 * 2 / 2**20  # of one prompt's KV
    ram = TierSettings(gib=1.2 * mib / 1024)
    fleet = Fleet(settings, ram=ram, ssd=TierSettings(gib=1, gib_per_s=0.5), load="always")
    for seed in (1, 2):
        fleet.clock.env.run(until=fleet.ask(seed))
    fleet.clock.env.run(until=fleet.clock.now_ns() + 10_000 * MS)
    slow, quick = fleet.ask(1), fleet.ask(3, tokens=64)
    done = fleet.clock.env.run(until=quick | slow)
    assert quick in done
    assert slow not in done
    fleet.clock.env.run(until=slow)
    found = [event for event in fleet.ended if isinstance(event, PrefixFound)][-1]
    assert found.loaded_tokens > 0
    assert found.waited_ns > 50 * MS
    assert fleet.ended[-1].cached_tokens_ssd > 0


def test_the_next_turn_of_a_session_finds_its_blocks_in_memory(settings):
    mib = 2048 * 2 * 16 * 8 * 64 * 2 / 2**20
    found = []
    for after_s in (None, 1.0):
        fleet = Fleet(
            settings,
            ram=TierSettings(gib=1.2 * mib / 1024),
            ssd=TierSettings(gib=1, gib_per_s=5),
            prefetch_after_s=after_s,
        )
        fleet.clock.env.run(until=fleet.ask(1, session="s"))
        fleet.clock.env.run(until=fleet.ask(2))
        fleet.clock.env.run(until=fleet.clock.now_ns() + 10_000 * MS)
        fleet.clock.env.run(until=fleet.ask(1, session="s"))
        found.append([event for event in fleet.ended if isinstance(event, PrefixFound)][-1].waited_ns)
    assert found[0] > 0 == found[1]

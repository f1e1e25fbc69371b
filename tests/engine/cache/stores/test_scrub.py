"""Stored KV that is read for its own sake: what is damaged is found before a request meets it, and let go of."""

import numpy as np
import pytest

from engine.cache.stores import StoreFault
from engine.engine import Engine
from engine.request import Request
from engine.settings import GIB, CacheSettings, ExecutorSettings, TierSettings
from sim.world import SimClock

pytestmark = pytest.mark.torch

BLOCK = 4096  # bytes: 16 tokens of the stand-in, in float32


class World:
    """An engine of real passes whose memory holds one prompt, over a folder."""

    def __init__(self, settings, folder):
        settings.executor = ExecutorSettings(name="torch")
        ram, ssd = TierSettings(gib=12 * BLOCK / GIB), TierSettings(gib=1.0, path=str(folder))
        settings.cache = CacheSettings(ram=ram, ssd=ssd, load="always")
        self.folder, self.clock, self.number = folder, SimClock(), 0
        self.engine = Engine(settings, self.clock)
        self.engine.start()
        self.carrier = self.engine.carrier

    def ask(self, seed):
        self.number += 1
        prompt = np.random.default_rng(seed).integers(64, size=160, dtype=np.int32)
        request = Request(self.number, "llama", prompt, 4, self.clock.now_ns())
        answer = self.clock.env.run(until=self.clock.spawn(self.engine.serve(request)))
        self.clock.env.run(until=self.clock.now_ns() + 10**9)  # what is demoted is written
        return answer

    def do(self, work):
        found = self.clock.env.run(until=self.clock.spawn(work))
        self.engine.cache.check_integrity()
        return found

    def scrub(self):
        (tier,) = self.carrier.stored_tiers()
        stored = self.do(self.carrier.stored(tier))
        assert stored == sorted(stored)
        return self.do(self.carrier.verify(tier, stored))

    def damage(self):
        """Turn one bit of the last byte of every extent; how many there are."""
        files = sorted(self.folder.rglob("*.kv"))
        for path in files:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        return len(files)


@pytest.fixture
def world(settings, tmp_path):
    world = World(settings, tmp_path / "ssd")
    for seed in range(3):
        world.ask(seed)
    yield world
    world.clock.close()
    world.engine.close()


def test_what_is_whole_stays_and_is_counted(world):
    found = world.scrub()
    assert found.blocks >= 10
    assert (found.num_bytes, found.damaged) == (found.blocks * BLOCK, 0)
    assert world.scrub() == found
    assert world.ask(0).usage.cached_tokens == 144


def test_damaged_blocks_are_let_go_of_once_and_the_tokens_are_the_same(world):
    fresh = world.ask(0).tokens
    world.ask(1), world.ask(2)
    before = world.scrub().blocks
    damaged = world.damage()
    found = world.scrub()
    assert found.blocks == before
    assert 0 < found.damaged <= damaged  # the last block of some is dead already
    assert world.carrier._stores["ssd"].counters.corrupt == found.damaged
    again = world.scrub()
    assert again.damaged == 0
    assert again.blocks <= before - found.damaged
    answer = world.ask(0)
    assert answer.tokens == fresh
    assert world.carrier.tally.lost_blocks == 0, "no request has met one"


def test_what_has_moved_meanwhile_is_not_taken_for_damaged(world):
    (tier,) = world.carrier.stored_tiers()
    stored = world.do(world.carrier.stored(tier))
    world.engine.cache.drop_model("llama@1.0.0")
    world.clock.env.run(until=world.clock.now_ns() + 10**9)
    assert world.do(world.carrier.verify(tier, stored)) == (0, 0, 0)


def test_a_store_that_fails_is_a_fault_and_no_damage(world, monkeypatch):
    (tier,) = world.carrier.stored_tiers()
    store = world.carrier._stores[tier.name]

    def broken(*_):
        raise StoreFault("io", "input/output error")

    monkeypatch.setattr(store.backend, "get", broken)
    before = len(world.engine.cache)

    async def scrub():
        try:
            await world.carrier.verify(tier, await world.carrier.stored(tier))
        except StoreFault as fault:
            return fault.kind
        return None

    assert world.do(scrub()) == "io"
    assert len(world.engine.cache) == before
    assert world.carrier._faults[tier.rank] == 1

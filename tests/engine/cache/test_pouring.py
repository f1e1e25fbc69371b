"""Blocks that pour into the next tier, beside the same traffic where each step is looked at by itself."""

import numpy as np
import pytest

from engine.cache import BlockChain, Carrier, PrefixCache
from engine.settings import GIB, TIERS, CacheSettings, TierSettings
from sim.world import SimClock

SIZE = 1 << 20
TOKENS = 2
MODELS = {"a@1.0.0": 1, "b@1.0.0": 2, "c@1.0.0": 3}  # blocks of one, two and three times the size
MS = 1_000_000


def ring(after, head):
    slot = after[head]
    while slot != head:
        yield slot
        slot = after[slot]


class Prefill:
    def prefill_ns(self, start, end):
        return (end - start) * MS


class World:
    """A cache of five small tiers in modelled time, and requests for prompts that share their heads."""

    def __init__(self, *, pours, sizes, queue, headroom, eviction, inclusive, written):
        made = {
            name: TierSettings(
                gib=blocks * SIZE / GIB,
                gib_per_s=0.1,
                concurrency=2,
                queue_gib=queue * SIZE / GIB,
                write="second_use" if name == written else "back",
            )
            for name, blocks in zip(TIERS, sizes, strict=True)
        }
        options = {"headroom": headroom, "eviction": eviction, "inclusive": inclusive}
        self.clock = SimClock()
        self.cache = PrefixCache(CacheSettings(block_tokens=TOKENS, **made, **options))
        self.carrier = Carrier(self.cache, self.clock)
        self.spaces = [self.cache.space(name, "w", "", SIZE * times) for name, times in MODELS.items()]
        assert all(tier.pours_to for tier in self.cache.tiers[:-1])
        if not pours:
            for tier in self.cache.tiers:
                tier.pours_to = None

    async def serve(self, space, tokens, answer, served_ns):
        names = BlockChain(space.digest, TOKENS)
        names.extend(tokens)
        num_tokens = len(tokens)
        with self.cache.find(space, names.keys, num_tokens, self.clock.now_ns()) as prefix:
            await self.carrier.bring(prefix, Prefill(), num_tokens)
            await self.clock.sleep(served_ns)
            names.extend(answer)
            self.cache.keep(space, names.keys, now_ns=self.clock.now_ns())

    async def play(self, seed):
        random = np.random.default_rng(seed)
        talks = [list(random.integers(9, size=6)) for _ in range(12)]
        for number in range(200):
            talk = talks[int(random.integers(12))]
            talk += list(random.integers(9, size=int(random.integers(1, 14))))
            if len(talk) > 60:
                del talk[int(random.integers(2, 30)) :]
            space = self.spaces[len(talk) % 3 if random.random() < 0.1 else 0]
            answer, served_ns = list(random.integers(9, size=4)), int(random.integers(100 * MS))
            self.clock.spawn(self.serve(space, list(talk), answer, served_ns))
            await self.clock.sleep(int(random.integers(60 * MS)))
            if number % 20 == 0:
                self.cache.check_integrity()

    def books(self):
        """All that can be told apart of what lies where, and in which order it leaves."""
        cache, table = self.cache, self.cache.table
        names, after = table.keys, table.links.after
        blocks = {
            key: (table.home[slot], table.links.used[slot], table.reads[slot])
            for key, slot in table.slots.items()
        }
        lines = [[names[slot] for slot in ring(after, tier.ring.head)] for tier in cache.tiers]
        copies = [[(names[slot], size) for slot, size in tier.copies.items()] for tier in cache.tiers]
        counts = [space.stats for space in cache.spaces.values()]
        ways = [
            (
                way.queued_bytes,
                way.num_writes,
                way.written_bytes,
                way.num_reads,
                way.read_bytes,
                way.waited_ns,
            )
            for way in self.carrier.ways
        ]
        return blocks, lines, copies, [repr(each) for each in counts], ways


OPTIONS = {
    "plain": {},
    "narrow_ways": {"queue": 1},
    "copies": {"written": "ssd"},
    "copies_near": {"written": "ram", "queue": 3},
    "headroom": {"headroom": 0.2},
    "inclusive": {"inclusive": True},
    "fifo": {"eviction": "fifo"},
    "narrow_tiers": {"sizes": (14, 3, 9, 4, 12)},
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", OPTIONS)
def test_what_pours_is_what_would_have_left_one_by_one(name, seed):
    usual = {"sizes": (40, 30, 40, 30, 60), "queue": 40, "headroom": 0.0, "eviction": "lru"}
    options = {**usual, "inclusive": False, "written": None, **OPTIONS[name]}
    books = []
    for pours in (True, False):
        world = World(pours=pours, **options)
        world.clock.env.run(until=world.clock.spawn(world.play(seed)))
        world.clock.env.run(until=world.clock.now_ns() + 10_000 * MS)
        assert not world.cache.pins
        books.append(world.books())
        world.clock.close()
    poured, looked_at = books
    assert poured == looked_at
    assert any(places[0] > 1 for places in poured[0].values())

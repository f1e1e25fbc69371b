"""KV that went down to files, redis and S3 and came back: the same tokens, or a miss, and never an error."""

import asyncio
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from engine.cache import Carrier
from engine.clock import WallClock
from engine.engine import Engine
from engine.errors import BadSettings
from engine.request import Request
from engine.settings import GIB, CacheSettings, ExecutorSettings, TierSettings
from engine.telemetry import Ended, PrefixFound, StoreFailed
from sim.world import SimClock

BLOCK = 4096  # bytes: 16 tokens of the stand-in, in float32
CONTEXT = 480
VOCAB = 64


class Notes:
    """A sink that keeps everything."""

    def __init__(self):
        self.events = []

    def emit(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


class World:
    """An engine of real passes whose memory holds one long prompt, over some colder tiers."""

    def __init__(self, settings, **cache):
        settings.executor = ExecutorSettings(name="torch")
        settings.cache = CacheSettings(**{"ram": blocks(40), "load": "always", **cache})
        self.clock, self.notes, self.ids = SimClock(), Notes(), count()
        self.engine = Engine(settings, self.clock, [self.notes])
        self.engine.start()

    def ask(self, prompt, new=8):
        request = Request(next(self.ids), "llama", prompt, new, self.clock.now_ns())
        answer = self.clock.env.run(until=self.clock.spawn(self.engine.serve(request)))
        self.engine.cache.check_integrity()
        return answer

    def rest(self, seconds=5.0):
        """Let what is under way come to its end."""
        self.clock.env.run(until=self.clock.now_ns() + int(seconds * 1e9))

    def close(self):
        self.clock.close()
        self.engine.close()


@pytest.fixture
def world(settings):
    made = []

    def making(**cache):
        if made:
            made.pop().close()
        made.append(World(settings, **cache))
        return made[-1]

    yield making
    for each in made:
        each.close()


def blocks(number, **options):
    return TierSettings(gib=number * BLOCK / GIB, **options)


def prompt(seed):
    return np.random.default_rng(seed).integers(VOCAB, size=CONTEXT, dtype=np.int32)


def push_out(world, num=3):
    """Ask for something else until memory is full of it."""
    for number in range(num):
        world.ask(prompt(100 + number))
    world.rest()


def loaded(world):
    return world.notes.of(PrefixFound)[-1].loaded_tokens


@pytest.fixture(params=["ssd", "network", "redis", "cloud"])
def cold(request, tmp_path):
    """The settings of a tier below memory, each with its real store."""
    options = {"gib": 0.01, "retry_after_s": 1.0, "timeout_s": 5.0}
    if request.param in ("ssd", "network"):
        return {request.param: TierSettings(path=str(tmp_path / "kv"), **options)}
    if request.param == "redis":
        url, _ = request.getfixturevalue("redis_server")
        return {"network": TierSettings(url=url, **options)}
    address, _, _ = request.getfixturevalue("s3_server")
    return {"cloud": TierSettings(url="s3://kv/blocks", endpoint=address, **options)}


def test_a_long_context_is_resumed_from_each_store_with_the_same_tokens(world, cold):
    made = world(**cold)
    first = made.ask(prompt(1))
    push_out(made)
    again = made.ask(prompt(1))
    assert again.tokens == first.tokens
    assert loaded(made) > 0
    assert again.usage.cached_tokens >= CONTEXT - 32
    assert made.engine.carrier.tally.lost_blocks == 0


def test_a_context_survives_the_end_of_the_process(world, cold):
    first = world(**cold).ask(prompt(1))
    made = world(**cold)
    again = made.ask(prompt(1))
    assert again.tokens == first.tokens
    assert loaded(made) == again.usage.cached_tokens >= CONTEXT - 32


def test_a_context_larger_than_memory_is_read_where_it_lies(world, cold):
    made = world(ram=blocks(10), **cold)
    first = made.ask(prompt(1))
    made.rest()
    again = made.ask(prompt(1))
    assert again.tokens == first.tokens
    assert again.usage.cached_tokens >= CONTEXT - 32
    assert loaded(made) >= CONTEXT - 12 * 16
    assert made.engine.cache.tiers[0].num_blocks <= 10


def spoil(folder, how):
    files = sorted(folder.rglob("*.kv"))
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        if how == "flipped":
            data[len(data) // 2] ^= 4
        elif how == "cut":
            data = data[: len(data) // 2]
        else:
            data = bytearray(len(data))
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "zeroed"])
def test_damaged_files_are_a_miss_and_never_a_wrong_token(world, tmp_path, how):
    made = world(ssd=TierSettings(gib=0.01, path=str(tmp_path / "kv")))
    first = made.ask(prompt(1))
    push_out(made)
    spoil(tmp_path / "kv", how)
    assert made.ask(prompt(1)).tokens == first.tokens
    assert made.engine.carrier.tally.lost_blocks > 0
    push_out(made)
    assert made.ask(prompt(1)).tokens == first.tokens  # what was computed again went down again, whole


def test_a_store_that_dies_costs_nobody_an_answer(world, s3_server):
    address, _, server = s3_server
    options = {"url": "s3://kv/blocks", "endpoint": address, "timeout_s": 1.0, "retry_after_s": 3600.0}
    made = world(cloud=TierSettings(gib=0.01, **options))
    first = made.ask(prompt(1))
    push_out(made, 2)
    server.kill()
    server.wait()
    push_out(made, 4)
    assert made.ask(prompt(1)).tokens == first.tokens
    assert {event.tier for event in made.notes.of(StoreFailed)} == {"cloud"}
    assert not made.engine.cache.tiers[1].is_open


def test_int8_comes_back_marked_and_takes_a_quarter(world, tmp_path):
    made = world(ssd=TierSettings(gib=0.01, path=str(tmp_path / "kv"), form="int8", max_error=0.1))
    made.ask(prompt(1))
    push_out(made)
    ssd = made.engine.cache.tiers[1]
    assert ssd.used_bytes < ssd.num_blocks * BLOCK / 3
    made.ask(prompt(1))
    assert loaded(made) > 0
    table, lossy = made.engine.cache.table, made.engine.cache.lossy
    assert {table.home[slot] for slot in lossy} == {0, 1}  # in memory again, and still known as lossy


def test_a_block_that_int8_would_change_too_much_is_written_exactly(world, tmp_path):
    made = world(ssd=TierSettings(gib=0.01, path=str(tmp_path / "kv"), form="int8", max_error=1e-9))
    first = made.ask(prompt(1))
    push_out(made)
    assert made.ask(prompt(1)).tokens == first.tokens
    assert not made.engine.cache.lossy


def test_memory_has_tiers_of_its_own(world):
    made = world(gpu=blocks(40), ram=blocks(200))
    first = made.ask(prompt(1))
    push_out(made)
    assert made.ask(prompt(1)).tokens == first.tokens
    assert loaded(made) > 0


def test_other_weights_never_find_these_blocks(world, settings, tmp_path):
    options = {"ssd": TierSettings(gib=0.01, path=str(tmp_path / "kv"))}
    world(**options).ask(prompt(1))
    settings.seed = 7  # the stand-in's weights are drawn from it
    made = world(**options)
    assert made.ask(prompt(1)).usage.cached_tokens == 0


def test_two_engines_cannot_have_one_folder(world, settings, tmp_path):
    world(ssd=TierSettings(gib=0.01, path=str(tmp_path / "kv")))
    with pytest.raises(BadSettings, match="kv"):
        World(settings, ssd=TierSettings(gib=0.01, path=str(tmp_path / "kv")))


@pytest.mark.parametrize(
    ("executor", "tier", "sentence"),
    [
        ("torch", TierSettings(gib=1), "tiers.ssd.path is None, but must say where"),
        ("roofline", TierSettings(gib=1, path="/kv"), "tiers.ssd.path is '/kv', but must be null"),
    ],
)
def test_a_store_is_there_exactly_where_there_is_kv_to_store(settings, executor, tier, sentence):
    settings.executor = ExecutorSettings(name=executor)
    settings.cache = CacheSettings(ssd=tier)
    with pytest.raises(BadSettings, match=sentence):
        Engine(settings, SimClock())


def test_a_full_line_drops_what_it_cannot_take(world, tmp_path):
    made = world(ssd=TierSettings(gib=0.01, path=str(tmp_path / "kv"), queue_gib=2 * BLOCK / GIB))
    push_out(made, 6)
    way, stats = made.engine.carrier.ways[1], made.engine.cache.spaces
    assert way.queued_bytes == 0
    assert sum(space.stats.evicted_blocks[0] for space in stats.values()) > 0
    assert isinstance(made.engine.carrier, Carrier)


@pytest.mark.slow
def test_a_context_of_100k_tokens_lies_in_files_network_and_cloud_and_is_resumed(
    world, settings, tmp_path, s3_server
):
    """One prompt, larger than each of the tiers: a part of it in memory, the rest over three stores."""
    settings.fleet.models[0].stand_in = replace(
        settings.fleet.models[0].stand_in, layers=1, heads=1, kv_heads=1, context_tokens=131_072
    )
    settings.fleet.step_tokens = 131_072  # all in one pass, which needs no mask: a third of the time
    tokens, block = 100_000, BLOCK // 4
    part = tokens // 16 // 4 * block / GIB
    address, _, _ = s3_server
    made = world(
        ram=TierSettings(gib=part, queue_gib=1),
        ssd=TierSettings(gib=part, path=str(tmp_path / "files")),
        network=TierSettings(gib=part, path=str(tmp_path / "mounted")),
        cloud=TierSettings(gib=1, url="s3://kv/blocks", endpoint=address, timeout_s=60.0),
    )
    long = np.random.default_rng(1).integers(VOCAB, size=tokens, dtype=np.int32)
    first = made.ask(long)
    made.rest(60)
    again = made.ask(long)
    assert again.tokens == first.tokens
    assert again.usage.cached_tokens >= tokens - 32
    end = made.notes.of(Ended)[-1]
    assert min(end.cached_tokens_ssd, end.cached_tokens_network, end.cached_tokens_cloud) > tokens // 5


def test_the_wall_clock_runs_the_same_transfers_in_threads(settings, tmp_path):
    settings.executor = ExecutorSettings(name="torch")
    ssd = TierSettings(gib=0.01, path=str(tmp_path / "kv"), form="int8", max_error=0.1)
    settings.cache = CacheSettings(ram=blocks(40), ssd=ssd, load="always")

    async def story():
        clock, notes, ids = WallClock(), Notes(), count()
        engine = Engine(settings, clock, [notes])
        engine.start()

        async def ask(seed):
            return await engine.serve(Request(next(ids), "llama", prompt(seed), 8, clock.now_ns()))

        await asyncio.gather(*[ask(seed) for seed in range(6)])
        await asyncio.sleep(0.5)
        await asyncio.gather(*[ask(seed) for seed in range(6)])
        engine.cache.check_integrity()
        await clock.close()
        engine.close()
        return engine, notes.of(PrefixFound)

    engine, found = asyncio.run(story())
    assert sum(each.loaded_tokens for each in found[6:]) > 0
    assert engine.carrier.tally.lost_blocks == engine.carrier.tally.failed_writes == 0

"""Every eviction order against what others have written, and against theory, on Zipf requests for unit blocks.

The others are libcachesim 0.3.5 and cachetools 8.0.1. Where ties are broken alike (LRU, FIFO, LFU, SIEVE) each single
request must agree; the other policies differ in details that the tests name.
"""

from functools import cache

import numpy as np
import pytest

from engine.cache.orders import Links, orders

cachetools = pytest.importorskip("cachetools", reason="the oracle cachetools is not installed")

IDS = 100_000
SHORT, WHOLE, DRAWN = 100_000, 500_000, 1_000_000
EXACT = {"lru": "LRU", "fifo": "FIFO", "lfu": "LFU", "sieve": "Sieve"}
CLOSE = {"s3fifo": "S3FIFO", "arc": "ARC"}


@cache
def zipf(requests, ids=IDS, alpha=1.0, seed=42):
    weight = np.arange(1, ids + 1) ** -alpha
    chances = np.cumsum(weight) / weight.sum()
    return np.searchsorted(chances, np.random.default_rng(seed).random(DRAWN))[:requests].tolist()


def play(name, trace, capacity, size=None, **options):
    """Which requests miss in a tier of so many bytes; a block takes one, or what `size` says, and costs the same."""
    links = Links()
    order = orders.make(name, links, lambda slot: False, **options)
    slots, ids, held, missed = {}, {}, 0, bytearray(len(trace))
    for step, number in enumerate(trace):
        slot = slots.get(number)
        if slot is not None:
            order.touch(slot)
            continue
        missed[step] = True
        needed = size[number] if size else 1
        while held + needed > capacity:
            victim = order.victim()
            gone = ids.pop(victim)
            order.leave(victim, gone.to_bytes(4, "little"))
            links.give_back(victim)
            del slots[gone]
            held -= size[gone] if size else 1
        slot = links.take()
        slots[number], ids[slot] = slot, number
        held += needed
        order.add(slot, number.to_bytes(4, "little"), 1 / needed)
    return missed


def play_libcachesim(name, trace, capacity, size=None):
    libcachesim = pytest.importorskip("libcachesim", reason="the oracle libcachesim is built for Linux only")
    peer = getattr(libcachesim, name)(cache_size=capacity, hashpower=18)
    request, missed = libcachesim.Request(), bytearray(len(trace))
    request.obj_size = 1
    for step, number in enumerate(trace):
        request.obj_id = number
        if size:
            request.obj_size = size[number]
        missed[step] = not peer.get(request)
    return missed


def play_cachetools(name, trace, capacity):
    peer, missed = getattr(cachetools, f"{name}Cache")(capacity), bytearray(len(trace))
    for step, number in enumerate(trace):
        if peer.get(number) is None:
            missed[step] = True
            peer[number] = True
    return missed


def ratio(missed):
    return sum(missed) / len(missed)


lengths = pytest.mark.parametrize("requests", [SHORT, pytest.param(WHOLE, marks=pytest.mark.slow)])
capacities = pytest.mark.parametrize("capacity", [1_000, 10_000])


@lengths
@capacities
@pytest.mark.parametrize("name", EXACT)
def test_each_request_ends_as_in_libcachesim(name, capacity, requests):
    trace = zipf(requests)
    assert play(name, trace, capacity) == play_libcachesim(EXACT[name], trace, capacity)


@lengths
@pytest.mark.parametrize("name", ["lru", "fifo", "lfu"])
def test_each_request_ends_as_in_cachetools(name, requests):
    trace = zipf(requests)
    assert play(name, trace, 1_000) == play_cachetools(name.upper(), trace, 1_000)


@pytest.mark.parametrize("name", CLOSE)
def test_miss_ratios_are_close_to_libcachesim(name):
    """ARC adapts after the victim has left, not before. S3-FIFO has the same shares: .1 small, .9 remembered.

    There, S3-FIFO fills the main queue with what does not fit in the small one while the cache fills for the first
    time; an order knows no capacity, so here all stand in the small one until the first victim.
    """
    trace = zipf(SHORT)
    assert ratio(play(name, trace, 1_000)) == pytest.approx(
        ratio(play_libcachesim(CLOSE[name], trace, 1_000)), abs=0.002
    )


@pytest.mark.slow
@capacities
@pytest.mark.parametrize("name", CLOSE)
def test_miss_ratios_are_close_to_libcachesim_on_the_whole_trace(name, capacity):
    trace = zipf(WHOLE)
    peer = ratio(play_libcachesim(CLOSE[name], trace, capacity))
    assert ratio(play(name, trace, capacity)) == pytest.approx(peer, abs=0.003)


@lengths
@pytest.mark.parametrize("capacity", [32_000, 320_000])
def test_gdsf_is_close_to_libcachesim_on_blocks_of_many_sizes(capacity, requests):
    """With one size for all, reads x density has few values, and it is the breaking of ties that is compared."""
    trace, size = zipf(requests), np.random.default_rng(1).integers(1, 65, IDS).tolist()
    peer = ratio(play_libcachesim("GDSF", trace, capacity, size))
    assert ratio(play("gdsf", trace, capacity, size)) == pytest.approx(peer, abs=0.002)


def test_gdsf_is_not_worse_than_libcachesim_on_blocks_of_one_size():
    trace = zipf(SHORT)
    assert ratio(play("gdsf", trace, 1_000)) <= ratio(play_libcachesim("GDSF", trace, 1_000)) + 0.002


def che(chances, capacity, resident):
    """Che's approximation: the hit ratio when a block is found with the chance `resident` gives after a time T."""
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if resident(chances * middle).sum() < capacity else (low, middle)
    return float((chances * resident(chances * low)).sum())


def stays_since_last_read(reads):
    return 1 - np.exp(-reads)


def stays_since_it_came(reads):
    return reads / (1 + reads)


@pytest.mark.parametrize(
    ("name", "resident", "expected"),
    [("lru", stays_since_last_read, 0.67560), ("fifo", stays_since_it_came, 0.63091)],
)
def test_hit_ratios_are_those_of_che(name, resident, expected):
    chances = np.arange(1, 10_001) ** -1.0
    chances /= chances.sum()
    assert che(chances, 1_000, resident) == pytest.approx(expected, abs=1e-5)
    warm = play(name, zipf(SHORT * 4, ids=10_000, seed=3), 1_000)[20_000:]
    assert 1 - ratio(warm) == pytest.approx(expected, abs=0.002)  # some three standard deviations


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "capacity", "expected"), [(1.0, 500, 0.58674), (1.0, 2_000, 0.76832)])
def test_lru_is_within_a_thousandth_of_che(alpha, capacity, expected):
    runs = [play("lru", zipf(DRAWN, 10_000, alpha, seed), capacity)[50_000:] for seed in (1, 2, 3)]
    assert 1 - sum(map(ratio, runs)) / 3 == pytest.approx(expected, abs=0.0008)


@pytest.mark.parametrize("name", orders.names())
def test_no_policy_beats_knowing_the_chances(name):
    """Under independent references, who keeps the most likely blocks cannot be beaten."""
    chances = np.arange(1, 1_001) ** -1.0
    best = chances[:100].sum() / chances.sum()
    assert best == pytest.approx(0.69299, abs=1e-5)
    warm = play(name, zipf(SHORT // 2, ids=1_000, seed=5), 100)[1_000:]
    assert 1 - ratio(warm) < best + 0.003


def test_frequency_and_second_chances_beat_recency_on_zipf_requests():
    misses = {
        name: ratio(play(name, zipf(SHORT), 1_000)) for name in ("lru", "sieve", "s3fifo", "arc", "lfu")
    }
    assert all(misses[name] < misses["lru"] - 0.05 for name in misses if name != "lru")


def test_ageing_follows_a_popularity_that_moves():
    first, second = zipf(SHORT // 2), [IDS - number for number in zipf(SHORT // 2, seed=6)]
    stiff = play("lfu", first + second, 1_000)[-SHORT // 4 :]
    ageing = play("lfu", first + second, 1_000, ageing_every=10_000)[-SHORT // 4 :]
    assert ratio(ageing) < ratio(stiff) - 0.02

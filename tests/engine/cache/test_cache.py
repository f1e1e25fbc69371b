"""The prefix cache: prefix-closed, never over its capacity, and never at the cost of what is in use."""

import numpy as np
import pytest

from engine.cache import BlockChain, PrefixCache, tables
from engine.errors import BadSettings, UnknownName
from engine.settings import GIB, CacheSettings, LimitSettings, TierSettings

SIZE = 1 << 10  # bytes of a block
TOKENS = 2  # of a block


def tier(blocks, **options):
    return TierSettings(gib=blocks * SIZE / GIB, **options)


def make(blocks=100, **options):
    return PrefixCache(CacheSettings(ram=tier(blocks), block_tokens=TOKENS, **options))


def space_of(cache, model="llama@1.0.0", tenant="", size=SIZE):
    return cache.space(model, "weights", tenant, size)


def chain(*tokens):
    """The names of the blocks of a sequence in which each block is one number, twice."""
    names = BlockChain(b"0" * 16, TOKENS)
    names.extend(np.repeat(np.array(tokens, dtype=np.int32), TOKENS))
    return names.keys


def keep(cache, keys, known=0, **whose):
    cache.keep(space_of(cache, **whose), keys, [f"KV {number}" for number in range(known, len(keys))])
    cache.check_integrity()


def fetch(cache, keys, num_tokens=100, **whose):
    return cache.find(space_of(cache, **whose), keys, num_tokens)


def walk(cache, keys):
    """How far a naive walk gets."""
    return next((index for index, key in enumerate(keys) if key not in cache.table.slots), len(keys))


def test_what_was_kept_is_found_with_its_payloads():
    cache, keys = make(), chain(1, 2, 3)
    keep(cache, keys)
    with fetch(cache, keys, 100) as prefix:
        assert (prefix.num_blocks, prefix.num_tokens) == (3, 6)
        assert prefix.payloads() == ["KV 0", "KV 1", "KV 2"]
    assert (len(cache), cache.used_bytes) == (3, 3 * SIZE)


def test_a_chain_is_found_as_far_as_it_is_shared():
    cache = make()
    keep(cache, chain(1, 2, 3))
    assert cache.match(chain(1, 2, 9, 3)) == 2
    assert cache.match(chain(2, 3)) == 0
    assert cache.match([]) == 0


@pytest.mark.parametrize("held", range(8))
@pytest.mark.parametrize("asked", range(8))
def test_bisection_finds_what_a_naive_walk_finds(held, asked):
    cache = make()
    keep(cache, chain(*range(held)))
    keys = chain(*range(asked))
    assert cache.match(keys) == walk(cache, keys) == min(held, asked)


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3)])
def test_one_token_at_least_is_left_to_prefill(num_tokens, expected):
    cache, keys = make(), chain(1, 2, 3)
    keep(cache, keys)
    with fetch(cache, keys[: num_tokens // TOKENS], num_tokens) as prefix:
        assert prefix.num_blocks == min(expected, num_tokens // TOKENS)


def test_the_tail_leaves_before_the_head():
    cache, old = make(4), chain(1, 2, 3, 4)
    keep(cache, old)
    keep(cache, chain(7))
    assert [walk(cache, old), cache.match(old)] == [3, 3]
    keep(cache, chain(7, 8))
    assert cache.match(old) == 2


def test_who_leaves_is_told_with_the_time_of_its_last_read():
    told, cache = [], make(blocks=3)
    cache.on_evicted = lambda *what: told.append(what)
    old, new = chain(1, 2), chain(3, 4)
    cache.keep(space_of(cache), old, ["KV"] * 2, now_ns=1_000_000_000)
    with cache.find(space_of(cache), old, 100, now_ns=2_000_000_000):
        pass
    assert told == []
    cache.keep(space_of(cache, model="phi@1.0.0"), new, ["KV"] * 2, now_ns=3_000_000_000)
    assert told == [("llama@1.0.0", "ram", 1, 2_000_000_000)]
    assert cache.match(old) == 1


def test_whoever_was_used_last_leaves_last():
    cache = make(4)
    keep(cache, chain(1, 2))
    keep(cache, chain(5, 6))
    with fetch(cache, chain(1, 2), 100):
        pass
    keep(cache, chain(9))
    assert [cache.match(chain(1, 2)), cache.match(chain(5, 6))] == [2, 1]


def test_what_is_in_use_never_leaves():
    cache, used = make(3), chain(1, 2)
    keep(cache, used)
    with fetch(cache, used, 100):
        keep(cache, chain(5, 6, 7))
        assert [cache.match(used), cache.match(chain(5, 6, 7))] == [2, 1]
    keep(cache, chain(5, 6, 7))
    assert cache.match(chain(5, 6, 7)) == 3
    assert cache.match(used) == 0


def test_two_users_of_one_prefix_both_hold_it():
    cache, keys = make(1), chain(1)
    keep(cache, keys)
    first, second = fetch(cache, keys, 100), fetch(cache, keys, 100)
    first.__exit__()
    keep(cache, chain(2))
    assert cache.match(keys) == 1
    second.__exit__()
    keep(cache, chain(2))
    assert cache.match(keys) == 0


def test_a_chain_longer_than_the_cache_is_kept_as_far_as_it_fits():
    cache, keys = make(3), chain(*range(10))
    keep(cache, keys)
    assert (cache.match(keys), cache.used_bytes) == (3, cache.capacity_bytes)


def test_nobody_leaves_for_a_block_that_is_larger_than_the_cache():
    cache, keys = make(4), chain(1, 2, 3)
    keep(cache, keys)
    cache.keep(space_of(cache, "large@1.0.0", size=5 * SIZE), chain(9), [None])
    cache.check_integrity()
    assert cache.match(keys) == 3


def test_a_tail_whose_head_has_left_is_not_kept():
    cache, keys = make(2), chain(1, 2, 3)
    keep(cache, keys[:2])
    keep(cache, chain(8, 9))
    keep(cache, keys, known=2)
    assert cache.match(keys) == 0
    assert cache.match(chain(8, 9)) == 2


def test_a_block_that_is_there_keeps_its_payload():
    cache, keys = make(), chain(1)
    cache.keep(space_of(cache), keys, ["first"])
    cache.keep(space_of(cache), keys, ["second"])
    assert fetch(cache, keys, 100).payloads() == ["first"]
    assert cache.used_bytes == SIZE


@pytest.mark.parametrize("cache", [make(0), make(enabled=False), make(0.5)])
def test_a_cache_without_room_or_switched_off_stays_empty(cache):
    keep(cache, chain(1, 2))
    assert len(cache) == cache.used_bytes == 0
    with fetch(cache, chain(1, 2), 100) as prefix:
        assert prefix.num_tokens == 0


def test_a_policy_that_does_not_exist_or_does_not_fit_is_refused():
    with pytest.raises(UnknownName, match="no eviction policy is called 'mru'"):
        make(eviction="mru")
    with pytest.raises(BadSettings, match="eviction policy 'lru' does not take these options"):
        make(options={"halves": 2})


@pytest.mark.parametrize(
    ("eviction", "options", "sentence"),
    [
        ("lfu", {"ageing_every": -1}, "eviction.ageing_every is -1, but must be at least 0"),
        ("lfu", {"ageing_every": "abc"}, "ageing_every 'abc', but it must be a whole number"),
        ("s3fifo", {"small_share": 1.5}, r"eviction.small_share is 1\.5, but must be from 0 to 1"),
        ("s3fifo", {"memory_share": -1.0}, r"eviction.memory_share is -1\.0, but must be at least 0"),
        ("s3fifo", {"reads": 4}, "eviction.reads is 4, but must be from 0 to 3"),
        ("s3fifo", {"reads": None}, "reads None, but it must be a whole number"),
    ],
)
def test_options_of_a_policy_that_make_no_sense_are_refused(eviction, options, sentence):
    with pytest.raises(BadSettings, match=sentence):
        make(eviction=eviction, options=options)


def break_bytes(cache, _slot):
    cache.tiers[0].used_bytes += 1


def break_owner(cache, _slot):
    cache.holders[0].held_bytes[0] -= 1


def break_closure(cache, slot):
    del cache.table.slots[cache.table.keys[slot]]


def break_counts(cache, slot):
    cache.table.kids[slot] += 2


def break_order(cache, _slot):
    cache.tiers[0].order_of(cache.holders[0]).forget(cache.table.slots[chain(1, 2)[1]])


def break_pins(cache, slot):
    cache.pins[slot] = 0


@pytest.mark.parametrize(
    "breach", [break_bytes, break_owner, break_closure, break_counts, break_order, break_pins]
)
def test_the_integrity_check_sees_each_breach(breach):
    cache, keys = make(), chain(1, 2)
    keep(cache, keys)
    breach(cache, cache.table.slots[keys[0]])
    with pytest.raises(AssertionError):
        cache.check_integrity()


@pytest.mark.slow
def test_lru_hits_as_often_as_theory_says():
    """Che's approximation for Zipf(1.0) over 10,000 objects and 500 places: .58674."""
    objects, places, requests, warmup = 10_000, 500, 100_000, 10_000
    weights = 1 / np.arange(1, objects + 1)
    drawn = np.random.default_rng(1).choice(objects, requests, p=weights / weights.sum()).tolist()
    cache, hits = make(places), 0
    space = space_of(cache)
    keys = [[number.to_bytes(16, "little")] for number in range(objects)]
    for count, number in enumerate(drawn):
        with fetch(cache, keys[number], TOKENS + 1) as prefix:
            hits += prefix.num_blocks if count >= warmup else 0
            if not prefix.num_blocks:
                cache.keep(space, keys[number], [None])
    assert hits / (requests - warmup) == pytest.approx(0.58674, abs=0.01)
    assert len(cache) == places


def three(**options):
    """Three tiers of 2, 3 and 4 blocks."""
    options = {"gpu": tier(2), "ram": tier(3), "ssd": tier(4), **options}
    return PrefixCache(CacheSettings(block_tokens=TOKENS, **options))


def lies(cache, keys):
    """The tier of each block of a chain; None for one that is not there."""
    slots = [cache.table.slots.get(key) for key in keys]
    return [None if slot is None else cache.tiers[cache.table.home[slot]].name for slot in slots]


def test_what_leaves_a_tier_goes_one_down_tail_first():
    cache, old = three(), chain(1, 2)
    keep(cache, old)
    keep(cache, chain(7))
    assert lies(cache, old) == ["gpu", "ram"]
    keep(cache, chain(8))
    assert lies(cache, old) == ["ram", "ram"]
    for number in range(20, 25):
        keep(cache, chain(number))
    assert lies(cache, old) == ["ssd", "ssd"]


def test_one_look_finds_a_prefix_over_all_tiers_and_promotes_it():
    cache, keys = three(), chain(1, 2, 3, 4)
    keep(cache, keys[:2])
    for number in range(20, 24):
        keep(cache, chain(number))
    assert lies(cache, keys[:2]) == ["ram", "ssd"]
    with fetch(cache, keys) as prefix:
        assert prefix.blocks_by_tier == [0, 1, 1]
        assert prefix.payloads() == ["KV 0", "KV 1"]
    assert lies(cache, keys[:2]) == ["gpu", "gpu"]
    cache.check_integrity()


def test_a_chain_that_is_longer_than_the_hottest_tier_goes_on_in_the_next():
    cache, keys = three(), chain(*range(12))
    keep(cache, keys)
    assert lies(cache, keys) == ["gpu"] * 2 + ["ram"] * 3 + ["ssd"] * 4 + [None] * 3
    with fetch(cache, keys) as prefix:
        assert prefix.num_blocks == 9
        cache.check_integrity()


def test_what_leaves_the_last_tier_is_gone():
    cache, old = three(), chain(1)
    keep(cache, old)
    for number in range(20, 29):
        keep(cache, chain(number))
    assert lies(cache, old) == [None]
    assert (len(cache), cache.used_bytes) == (9, 9 * SIZE)


def test_a_promoted_block_leaves_a_copy_where_that_is_wanted():
    cache, keys = three(inclusive=True), chain(1)
    keep(cache, keys)
    keep(cache, chain(7, 8))
    with fetch(cache, keys):
        cache.check_integrity()
    assert (lies(cache, keys), cache.tiers[1].copied_bytes) == (["gpu"], SIZE)
    keep(cache, chain(5, 6))
    assert (lies(cache, keys), cache.tiers[1].copied_bytes) == (["ram"], 0)  # it is there already


def test_copies_that_were_left_behind_go_first_when_room_is_needed():
    cache, keys = three(inclusive=True), chain(1)
    keep(cache, keys)
    keep(cache, chain(7, 8))
    with fetch(cache, keys):
        pass
    assert cache.tiers[1].copied_bytes == SIZE
    for number in range(20, 24):
        keep(cache, chain(number))
        with fetch(cache, keys):
            cache.check_integrity()
    assert (lies(cache, keys), cache.tiers[1].copied_bytes) == (["gpu"], 0)


def test_copies_that_were_written_on_purpose_stay_and_the_oldest_block_goes():
    cache, kept = three(ram=None, ssd=tier(3, write="through")), chain(1)
    for number in (1, 2, 3, 4):
        keep(cache, chain(number))
        with fetch(cache, kept):
            pass
    assert cache.table.slots[kept[0]] in cache.tiers[1].copies
    assert [lies(cache, chain(number)) for number in (2, 3, 4)] == [[None], ["ssd"], ["gpu"]]
    cache.check_integrity()


def test_a_block_is_written_below_when_it_is_used_for_the_second_time():
    cache, keys = three(ssd=tier(4, write="second_use")), chain(1)
    keep(cache, keys)
    assert not cache.tiers[2].copies
    with fetch(cache, keys):
        pass
    assert cache.tiers[2].copied_bytes == SIZE


def test_a_lost_payload_is_a_miss_until_it_is_computed_again():
    cache, keys = make(), chain(1, 2, 3)
    keep(cache, keys)
    cache.lose(cache.table.slots[keys[1]])
    with fetch(cache, keys) as prefix:
        assert prefix.num_blocks == 1
        cache.keep(space_of(cache), keys[:2], ["anew"])
    with fetch(cache, keys) as prefix:
        assert prefix.payloads() == ["KV 0", "anew", "KV 2"]
    cache.check_integrity()


def test_no_tenant_and_no_model_finds_what_another_one_keeps():
    cache = make()
    spaces = [space_of(cache, model, tenant) for model in ("a@1.0.0", "b@1.0.0") for tenant in ("", "t")]
    assert len({space.digest for space in spaces}) == 4
    shared = make(share_between_tenants=True)
    assert space_of(shared, tenant="t").digest == space_of(shared, tenant="u").digest


def test_a_model_can_be_dropped_alone():
    cache, mine, yours = three(), chain(1, 2), chain(5, 6)
    keep(cache, mine, model="mine@1.0.0")
    keep(cache, yours, model="yours@1.0.0")
    assert cache.drop_model("mine@1.0.0") == 2
    assert lies(cache, mine) == [None] * 2
    assert None not in lies(cache, yours)
    cache.check_integrity()


def test_room_is_freed_ahead_of_need_where_headroom_is_set():
    cache = make(10, headroom=0.3)
    for number in range(11):
        keep(cache, chain(number))
    assert len(cache) == 7


def test_what_was_evicted_and_is_wanted_again_is_counted():
    cache = make(1)
    keep(cache, chain(1))
    keep(cache, chain(2))
    keep(cache, chain(1))
    assert cache.wanted_again["llama@1.0.0"][0] == 1


def test_a_limit_is_kept_at_the_cost_of_its_own():
    limit = LimitSettings(tier="ram", gib=2 * SIZE / GIB, model="small", admit_from=1, demote_from=1)
    cache = make(10, limits=[limit])
    keep(cache, chain(50, 51), model="large@1.0.0")
    for number in range(5):
        keep(cache, chain(number), model="small@1.0.0")
    assert [cache.match(chain(number)) for number in range(5)] == [0, 0, 0, 1, 1]
    assert cache.match(chain(50, 51)) == 2


def test_a_block_that_was_stuck_leaves_with_what_hangs_on_it_and_is_booked_once():
    """Making room below for both lets go of the last thing that kept it: it must not be in line above any more."""
    cache = PrefixCache(CacheSettings(ram=tier(2), ssd=tier(3), block_tokens=TOKENS))
    ram, ssd = cache.tiers
    keep_sizes(cache, chain(1, 2))
    keep_sizes(cache, chain(5))
    head = cache.table.slots[chain(1)[0]]
    assert tiers_of(cache, chain(1, 2)) == [0, 1]
    cache.close_tier(ssd)
    keep_sizes(cache, chain(6))
    assert head in cache._stuck, "it has nowhere to go, and a block hangs on it"
    cache.open_tier(ssd)
    keep_sizes(cache, chain(1, 3))
    assert tiers_of(cache, chain(1, 3)) == [0, 0]
    with cache.find(space_of(cache), chain(1, 3), 100):
        keep_sizes(cache, chain(9))  # nobody above may leave: those who are looked at go out of the line
    keep_sizes(cache, chain(7, 8))
    assert tiers_of(cache, chain(1, 3)) == [1, 1]
    for number in range(20, 30):
        keep_sizes(cache, chain(number, number + 1))
    assert (ram.used_bytes, ssd.used_bytes) == (2 * SIZE, 3 * SIZE)


def keep_sizes(cache, keys):
    cache.keep(space_of(cache), keys)
    cache.check_integrity()


def tiers_of(cache, keys):
    return [cache.table.home[cache.table.slots[key]] for key in keys]


def test_namespaces_that_hold_nothing_are_forgotten_and_their_counts_are_not(monkeypatch):
    monkeypatch.setattr("engine.cache.cache.SWEPT_FROM", 8)
    cache = make(blocks=2)
    cache._sweep_at = 8
    held = space_of(cache, tenant="holds")
    in_hand = space_of(cache, tenant="comes back")
    with cache.find(held, chain(1), 100):
        pass
    cache.keep(held, chain(1))
    for number in range(100):
        fetch(cache, chain(number + 10), tenant=f"user-{number}")
    assert len(cache.spaces) < 10
    assert not in_hand.is_known
    assert cache.spaces[held.digest] is held
    all_ = tables(cache)["all"]
    assert all_["requests"] == 101
    assert all_["prompt_tokens"] == 101 * 100
    assert tables(cache)["by_tenant"]["(others)"]["requests"] > 80
    with cache.find(in_hand, chain(7), 100):
        pass
    assert cache.keep(in_hand, chain(7)) == 1
    assert cache.space_of(cache.table.slots[chain(7)[0]]).tenant == "comes back"
    assert tables(cache)["by_tenant"]["comes back"]["inserted_blocks"] == 1
    cache.check_integrity()

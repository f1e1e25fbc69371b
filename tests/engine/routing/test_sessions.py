"""Sessions: sticky for a while, bounded, moved when their replica goes, and the same after a restart."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from engine.clock import NS_PER_S, to_ns
from engine.routing import Seat
from engine.routing.sessions import MANY_SLOTS, Sessions, Slots, digest_of


def serve(router, request, now_ns, took_ns=NS_PER_S):
    seat = router.route("llama", request, 10, now_ns)
    router.release("llama", seat, request, 10, now_ns + took_ns)
    return seat.name


@pytest.mark.parametrize("name", ["round_robin", "random", "least_loaded", "affinity", "power_of_two"])
def test_a_session_is_served_by_one_replica_twenty_times_of_twenty(make, ask, name):
    router, _ = make(count=5, strategy=name)
    names = set()
    for number in range(20):
        names.add(serve(router, ask(number, session="user-123"), to_ns(60 * number)))
        serve(router, ask(1000 + number), to_ns(60 * number))  # others go their ways
    assert len(names) == 1


def test_after_six_minutes_of_silence_there_is_a_new_choice_and_it_is_sticky_again(make, ask):
    router, _ = make(count=5)
    first = serve(router, ask(session="user-123"), 0)
    assert serve(router, ask(session="user-123"), to_ns(299)) == first
    assert serve(router, ask(session="user-123"), to_ns(299 + 300.5)) == first  # it ended a second later
    after = serve(router, ask(session="user-123"), to_ns(601 + 360))
    assert after != first  # whose turn it was
    assert serve(router, ask(session="user-123"), to_ns(1000)) == after
    assert router.sessions.num_hits == 3


@pytest.mark.parametrize(("mean_gap_s", "kept"), [(60, 0.99326), (300, 0.63212), (600, 0.39347)])
def test_the_timeout_slides(make, ask, mean_gap_s, kept):
    """Exponential gaps of mean g are shorter than a sliding timeout of 300 s with chance 1 - e^(-300/g)."""
    router, _ = make(count=2)
    gaps_s, now_ns = np.random.default_rng(1).exponential(mean_gap_s, 20_000), 0
    for gap_s in gaps_s:
        serve(router, ask(session="s"), now_ns, took_ns=0)
        now_ns += to_ns(gap_s)
    share = router.sessions.num_hits / 20_000
    assert share == pytest.approx(kept, abs=4 * (kept * (1 - kept) / 20_000) ** 0.5)


def test_a_request_in_service_keeps_its_session(make, ask):
    router, _ = make(count=3)
    long = router.route("llama", ask(session="s"), 10, 0)
    assert router.route("llama", ask(session="s"), 10, to_ns(3600)) is long


def test_a_session_moves_when_its_replica_goes_and_stays_at_the_new_one(make, ask):
    router, _ = make(count=3)
    first = serve(router, ask(session="s"), 0)
    router.set_available(first, False)
    second = serve(router, ask(session="s"), to_ns(1))
    assert second != first
    router.set_available(first, True)
    assert {serve(router, ask(session="s"), to_ns(2 + number)) for number in range(5)} == {second}
    assert router.sessions.num_moved == 1


def test_a_retry_moves_the_session_with_it(make, ask):
    router, _ = make(count=3)
    with router.attempts("llama", ask(session="s"), 10, 0) as attempts:
        lost = attempts.next(0)
        second = attempts.next(1)
    assert second is not lost
    assert serve(router, ask(session="s"), 2) == second.name


def test_sessions_can_be_switched_off(make, ask):
    router, _ = make(count=2, sessions=False)
    assert [serve(router, ask(session="s"), 0) for _ in range(4)] == ["a", "b", "a", "b"]
    assert len(router.sessions) == 0


def test_a_million_sessions_take_bounded_memory(make, ask):
    router, _ = make(count=3, session_capacity=1000)
    for pool in ("phi", "auto"):
        router.add(pool, pool)
    for number in range(20_000):
        request = ask(number, session=f"s{number}")
        for pool in ("llama", "phi"):
            router.release(pool, router.route(pool, request, 1, number), request, 1, number)
        assert len(router.sessions) <= 1000


def test_who_was_silent_for_long_leaves_the_table(make, ask):
    router, _ = make(count=3)
    for number in range(100):
        serve(router, ask(number, session=f"s{number}"), 0)
    for minute in range(6, 20, 6):
        serve(router, ask(session="alive"), to_ns(60 * minute))
        serve(router, ask(session=f"new {minute}"), to_ns(60 * minute))
    assert len(router.sessions) <= 4


def test_a_session_at_two_pools_has_a_place_at_each(make, ask):
    router, _ = make(count=2)
    for name in "xy":
        router.add(name, "phi")
    seats = {pool: router.route(pool, ask(session="s"), 1, 0) for pool in ("llama", "phi")}
    for pool, seat in seats.items():
        assert router.route(pool, ask(session="s"), 1, 0) is seat


def test_half_a_character_is_a_session_like_any_other(make, ask):
    router, _ = make(count=3, strategy="affinity")
    assert {serve(router, ask(session="\ud800"), number) for number in range(5)} == {
        serve(router, ask(session="\ud800"), 6)
    }


def test_the_hash_is_the_same_in_every_process():
    code = "from engine.routing.sessions import digest_of; print(digest_of('user-123'))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "4711")
    ]
    assert told == [f"{digest_of('user-123')}\n"] * 2


def test_many_replicas_share_the_slots_and_few_move():
    seats = [Seat(f"r{number}", "llama") for number in range(200)]
    slots = Slots()
    sessions = [f"s{number}" for number in range(5000)]
    before = [slots.seat_of(name, seats) for name in sessions]
    assert len(slots._slots) == MANY_SLOTS
    counts = Counter(seat.name for seat in before)
    assert len(counts) == 200
    assert max(counts.values()) < 75
    fewer = seats[1:]
    after = [slots.seat_of(name, fewer) for name in sessions]
    moved = [old for old, new in zip(before, after, strict=True) if old is not new]
    assert set(moved) == {seats[0]}


def test_an_entry_that_was_never_released_is_forgotten_all_the_same():
    sessions = Sessions(to_ns(10), 100)
    table = sessions.table()
    table.bind("lost", Seat("a", "llama"), 0)
    for number in range(3):
        table.bind(f"s{number}", Seat("a", "llama"), to_ns(11 * (number + 1)))
    assert len(sessions) <= 3
    table.ended("lost", 0)
    table.ended("never heard of", 0)

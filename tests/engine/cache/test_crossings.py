"""Transfers that are worked off when somebody looks, beside the plainest way of it: an event for the end of each."""

from collections import deque
from functools import partial

import numpy as np
import pytest

from engine.cache.crossings import Crossings
from engine.cache.ways import Way
from engine.settings import GIB, TierSettings
from sim.world import SimClock

MS = 1_000_000


class Eager:
    """What `Crossings` does, with an event for each end."""

    def __init__(self, clock):
        self.clock = clock
        self.lines = {}

    def catch_up(self, now_ns):
        pass

    def write(self, way, size_bytes, over, what, at_ns):
        self._ask(way, size_bytes, lambda: over(what, self.clock.now_ns()), 1)

    def read(self, way, size_bytes, then):
        self._ask(way, size_bytes, then, 0)

    def _ask(self, way, size_bytes, over, line):
        lines = self.lines.setdefault(way, (deque(), deque()))
        if way.busy < way.settings.concurrency:
            way.busy += 1
            self._begin(way, size_bytes, over)
        else:
            lines[line].append((self.clock.now_ns(), partial(self._begin, way, size_bytes, over)))

    def _begin(self, way, size_bytes, over):
        self.clock.call_later(way.modelled_ns(size_bytes), partial(self._end, way, over))

    def _end(self, way, over):
        reads, writes = self.lines[way]
        if reads or writes:
            begun_ns, begin = (reads or writes).popleft()
            way.waited_ns += self.clock.now_ns() - begun_ns
            begin()
        else:
            way.busy -= 1
        over()


def played(make, seed, concurrency):
    """When each transfer was over, and how long transfers waited on each way."""
    random, clock = np.random.default_rng(seed), SimClock()
    settings = TierSettings(gib=1, gib_per_s=1e6 / GIB, latency_s=0.001, concurrency=concurrency)
    ways, crossings, over = [Way(settings, clock) for _ in range(2)], make(clock), {}

    def ask(number, way, size_bytes, is_read, again):
        crossings.catch_up(clock.now_ns())
        if is_read:
            crossings.read(way, size_bytes, lambda: over.update({number: clock.now_ns()}))
        else:
            crossings.write(way, size_bytes, partial(ended, way, size_bytes), (number, again), clock.now_ns())

    def ended(way, size_bytes, what, at_ns):
        number, again = what
        over[what] = at_ns
        if again:
            crossings.write(way, size_bytes, partial(ended, way, size_bytes), (number, again - 1), at_ns)

    for number in range(300):
        at_ns, size, again = (int(random.integers(most)) for most in (200 * MS, 9_999, 3))
        ask_later = partial(ask, number, ways[int(random.integers(2))], size, random.random() < 0.4, again)
        clock.call_later(at_ns, ask_later)
    clock.env.run(until=60_000 * MS)
    crossings.catch_up(clock.now_ns())
    assert [way.busy for way in ways] == [0, 0]
    return over, [way.waited_ns for way in ways]


@pytest.mark.parametrize("concurrency", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_everything_is_over_when_it_would_be_with_an_event_for_each_end(seed, concurrency):
    over, waited = played(Crossings, seed, concurrency)
    assert (over, waited) == played(Eager, seed, concurrency)
    assert len(over) >= 300
    assert sum(waited) > 0


def test_nothing_happens_on_the_clock_at_the_end_of_a_write():
    clock = SimClock()
    way, crossings, over = Way(TierSettings(gib=1), clock), Crossings(clock), []
    crossings.write(way, GIB, lambda what, at_ns: over.append((what, at_ns)), "it", 0)
    assert clock.env.peek() == float("inf")
    crossings.catch_up(10**12)
    assert over == [("it", way.modelled_ns(GIB))]


def test_when_a_moment_is_over_what_was_put_off_until_then_comes_first():
    clock = SimClock()
    way, crossings, told = Way(TierSettings(gib=1, concurrency=1), clock), Crossings(clock), []
    crossings.after(5, told.append)
    crossings.catch_up(5)
    assert told == []
    crossings.write(way, GIB, lambda _, at_ns: told.append(at_ns), None, 5)
    crossings.catch_up(10**12)
    assert told == [6, 5 + way.modelled_ns(GIB)]


@pytest.mark.parametrize("gib_per_s", [0.5, 1.0, 3.2, 25.0])
@pytest.mark.parametrize("latency_s", [0.0, 0.000_05, 0.001])
def test_what_is_modelled_is_rounded_to_the_nearest_nanosecond_and_halves_to_the_even_one(
    gib_per_s, latency_s
):
    way = Way(TierSettings(gib=1, gib_per_s=gib_per_s, latency_s=latency_s), SimClock())
    sizes = [1 << bits for bits in range(40)] + [3 * size for size in range(0, 10_000, 7)]
    exact = [(latency_s + size / (gib_per_s * GIB)) * 1_000_000_000 for size in sizes]
    assert latency_s or any(each % 1 == 0.5 for each in exact)
    assert [way.modelled_ns(size) for size in sizes] == list(map(round, exact))


def test_what_a_read_takes_may_be_drawn_and_a_write_takes_what_is_modelled():
    clock = SimClock()
    way, crossings, read, over = Way(TierSettings(gib=1, concurrency=2), clock), Crossings(clock), [], []
    takes = iter([3 * MS, 0.4])
    way.drawn_ns = lambda size_bytes: next(takes) * size_bytes
    crossings.read(way, 1, lambda: read.append(clock.now_ns()))
    crossings.write(way, GIB, lambda what, at_ns: over.append((what, at_ns)), "it", 0)
    while clock.env.peek() < float("inf"):
        clock.env.step()
    assert read == [3 * MS]
    crossings.catch_up(10**12)
    assert over == [("it", way.modelled_ns(GIB))]
    assert way.read_ns(5) == 2
    way.drawn_ns = None
    assert way.read_ns(GIB) == way.modelled_ns(GIB)

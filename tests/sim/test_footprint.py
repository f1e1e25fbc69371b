"""What lives behind an object is counted once, and stops at what belongs to others."""

import sys

from sim.footprint import footprint, reached


class Held:
    def __init__(self, *things):
        self.things = things


def test_each_thing_counts_once():
    shared = bytearray(1000)
    held = Held(shared, shared)
    objects, num_bytes = reached([held])
    alone, alone_bytes = reached([Held(shared)])
    assert objects == alone
    assert num_bytes - alone_bytes == sys.getsizeof((1, 2)) - sys.getsizeof((1,))


def test_what_is_left_out_is_not_passed_through():
    behind = [bytearray(10) for _ in range(50)]
    assert reached([Held(behind)])[0] - reached([Held(behind)], without=[behind])[0] == 51


def test_code_and_modules_are_nobodys():
    assert reached([Held(sys, test_each_thing_counts_once, Held)])[0] < 10


def test_an_idle_engine_stays_as_it_is(engine, clock):
    clock.env.run(until=10_000_000_000)
    first = footprint(engine)
    clock.env.run(until=3_600_000_000_000)
    again = footprint(engine)
    assert first.at_ns < again.at_ns
    assert abs(again.objects - first.objects) < 30  # numbers that have grown out of the small ones
    assert first.in_flight == again.in_flight == 0

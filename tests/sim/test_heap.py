"""The heap that the compiled queue keeps, beside the standard library's."""

import weakref
from heapq import heappop, heappush

import numpy as np
import pytest

from sim.heap import Heap


@pytest.mark.parametrize(
    ("times", "priorities"),
    [(1, 1), (3, 2), (40, 1_100), (1 << 60, 3)],
    ids=["all at once", "many ties", "few ties", "far away"],
)
def test_what_is_taken_comes_in_the_order_of_the_standard_library(times, priorities):
    """Waxing and waning: far more than there are places at first, and several times none at all."""
    heap, theirs, random = Heap(), [], np.random.default_rng(5)
    for number in range(6_000):
        is_waxing = number // 500 % 2 == 0
        if theirs and random.random() < (0.3 if is_waxing else 0.8):
            time_ns, priority, order, what = heappop(theirs)
            assert heap.first_ns() == time_ns
            assert heap.take() is what
            assert (heap.time_ns, heap.priority, heap.number) == (time_ns, priority, order)
        else:
            entry = (int(random.integers(times)), int(random.integers(priorities)), number, object())
            heappush(theirs, entry)
            heap.add(*entry)
        assert len(heap) == heap.size == len(theirs)
    while theirs:
        assert heap.take() is heappop(theirs)[3]


def test_numbers_that_break_ties_need_not_rise():
    heap = Heap()
    for number in (5, 3, 9, 1):
        heap.add(7, 1, number, number)
    assert [heap.take() for _ in range(4)] == [1, 3, 5, 9]


def test_nothing_can_be_taken_where_nothing_is_and_the_heap_goes_on():
    heap = Heap()
    with pytest.raises(IndexError, match="nothing is due"):
        heap.take()
    heap.add(1, 1, 1, "it")
    assert heap.take() == "it"
    with pytest.raises(IndexError, match="nothing is due"):
        heap.take()
    assert len(heap) == 0


def test_what_was_taken_is_let_go():
    heap, thing = Heap(), {1}
    heap.add(1, 1, 1, thing)
    held = weakref.ref(thing)
    del thing
    assert heap.take() == {1}
    assert held() is None

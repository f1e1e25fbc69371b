"""Histograms: numbers put where their bounds say, and what a scrape gets of them."""

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.figures import Histogram, LogHistogram, cumulative

TENTH_OF_A_US = 100  # ns


def test_bounds_of_powers_of_two_are_told_in_the_unit_of_the_scrape():
    assert LogHistogram(5, TENTH_OF_A_US, 1e-9).bounds == [1e-07, 2e-07, 4e-07, 8e-07, 1.6e-06]
    assert LogHistogram(4).bounds == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (0, 0),
        (1, 0),
        (100, 0),
        (101, 1),
        (200, 1),
        (201, 2),
        (400, 2),
        (401, 3),
        (800, 3),
        (801, 4),
        (10**9, 4),
    ],
)
def test_a_number_on_a_bound_belongs_below_it(number, place):
    histogram = LogHistogram(4, TENTH_OF_A_US)
    histogram.observe(number)
    assert histogram.counts.index(1) == place


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 1 << 40)), num_bounds=st.integers(1, 30), unit=st.integers(1, 1000))
def test_bits_find_the_same_bucket_as_a_search(numbers, num_bounds, unit):
    histogram, bounds = LogHistogram(num_bounds, unit), [unit << power for power in range(num_bounds)]
    expected = [0] * (num_bounds + 1)
    for number in numbers:
        histogram.observe(number)
        expected[bisect_left(bounds, number)] += 1
    assert histogram.counts == expected
    assert histogram.total == sum(numbers)


def test_one_duration_may_count_for_many():
    histogram = Histogram((0.01, 0.1))
    histogram.observe(20_000_000, 9)
    assert cumulative(histogram) == [("0.01", 0.0), ("0.1", 9.0), ("+Inf", 9.0)]
    assert histogram.total == pytest.approx(0.18)


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 1 << 40)))
@pytest.mark.parametrize("make", [lambda: LogHistogram(12, TENTH_OF_A_US), Histogram], ids=["log", "time"])
def test_many_at_a_time_are_counted_like_one_after_the_other(make, numbers):
    single, together = make(), make()
    for number in numbers:
        single.observe(number)
    for part in (numbers[:7], numbers[7:]):
        together.observe_all(list(part))
    assert together.counts == single.counts
    assert together.total == single.total

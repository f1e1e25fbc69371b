"""Intervals that hold as often as they say, and a test that may be looked at after every observation."""

import numpy as np
import pytest

from engine.routing.comparison import Running, compare, mismatch_p_value, t_quantile


def running(values):
    made = Running()
    for value in values:
        made.add(float(value))
    return made


def test_a_running_mean_and_variance_are_those_of_all_values():
    values = np.random.default_rng(1).normal(1e6, 3.0, 5000)
    made = running(values)
    assert (made.count, made.mean) == (5000, pytest.approx(values.mean()))
    assert made.variance == pytest.approx(values.var(ddof=1), rel=1e-6)
    assert running([]).variance == running([4]).variance == 0.0


@pytest.mark.parametrize(
    ("chance", "freedom", "quantile"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 5, 2.5706),
        (0.975, 10, 2.2281),
        (0.975, 30, 2.0423),
        (0.975, 120, 1.9799),
        (0.975, 1e9, 1.9600),
        (0.995, 4, 4.6041),
        (0.95, 7, 1.8946),
        (0.9, 3, 1.6377),
        (0.5, 9, 0.0),
        (0.025, 10, -2.2281),
    ],
)
def test_the_t_quantile_is_that_of_the_tables(chance, freedom, quantile):
    assert t_quantile(chance, freedom) == pytest.approx(quantile, abs=2e-4)


@pytest.mark.parametrize(
    ("counts", "weights", "p"),
    [
        ([50, 50], [0.5, 0.5], 1.0),
        ([60, 40], [0.5, 0.5], 0.0455),
        ([10, 20, 30], [1 / 3] * 3, 0.00674),
        ([25, 25, 25, 45], [0.25] * 4, 0.0186),
    ],
)
def test_the_mismatch_test_is_that_of_the_tables(counts, weights, p):
    assert mismatch_p_value(counts, weights) == pytest.approx(p, abs=2e-4)


def test_a_mismatch_is_seen_and_a_match_is_left_alone():
    assert mismatch_p_value([5000, 5000], [0.7, 0.3]) < 1e-12
    assert mismatch_p_value([7030, 2970], [0.7, 0.3]) > 0.3
    assert mismatch_p_value([0, 0], [0.5, 0.5]) == 1.0
    assert mismatch_p_value([10], [1.0]) == 1.0


def test_welchs_interval_covers_the_truth_as_often_as_it_says():
    random, covered, count = np.random.default_rng(2), 0, 2000
    for _ in range(count):
        result = compare(running(random.normal(0, 1, 20)), running(random.normal(0.5, 4, 12)), 0.05)
        covered += result.low <= 0.5 <= result.high
    assert covered / count == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / count) ** 0.5)


@pytest.mark.slow
def test_looking_after_each_observation_finds_nothing_where_nothing_is_and_a_plain_test_does():
    """300 A/A runs of 1,200 observations, looked at every ten: false findings at most alpha; naively, far more."""
    random, any_time, naive, runs = np.random.default_rng(3), 0, 0, 300
    for _ in range(runs):
        a, b, found, fooled = Running(), Running(), False, False
        for one, other in random.exponential(1.0, (600, 2)):
            a.add(one)
            b.add(other)
            if a.count >= 30 and a.count % 10 == 0:
                result = compare(a, b, 0.05)
                found = found or result.verdict != "no decision yet"
                fooled = fooled or not result.low <= 0 <= result.high
        any_time += found
        naive += fooled
    assert any_time / runs <= 0.05
    assert naive / runs > 0.2


def test_it_finds_a_difference_that_is_there_long_before_the_end():
    random, seen_after = np.random.default_rng(4), []
    for _ in range(50):
        a, b = Running(), Running()
        for number in range(5000):
            a.add(random.normal(1.0, 0.5))
            b.add(random.normal(0.8, 0.5))
            if number % 20 == 0 and (result := compare(a, b, 0.05)).verdict != "no decision yet":
                assert result.verdict == "b is better"
                seen_after.append(number)
                break
    assert len(seen_after) == 50
    assert np.median(seen_after) < 500


def test_before_there_is_enough_nothing_is_decided():
    result = compare(running([1, 1]), running([9, 9]), 0.05)
    assert result.verdict == "no decision yet"
    assert compare(running([1]), running([2]), 0.05).high == float("inf")
    more = compare(running([1.0, 1.1] * 50), running([2.0, 2.1] * 50), 0.05, more_is_better=True)
    assert more.verdict == "b is better"
    assert more.difference == pytest.approx(1.0)

"""Intervals hold the truth as often as they say; a start is found where it ends."""

import numpy as np
import pytest

from sim.stats import (
    TooShort,
    autocorrelation_time,
    averaged,
    batch_means,
    clustered_difference,
    difference,
    holm,
    mser5,
    quantile_interval,
    warm_up,
)


def ar1(generator, count, phi, start=0.0):
    """A series with autocorrelation time (1 + phi) / (1 - phi), mean 0."""
    noise, values, last = generator.normal(size=count), np.empty(count), start
    for index in range(count):
        last = values[index] = phi * last + noise[index]
    return values


def waits(generator, count, rho, first=0.0):
    """Waiting times of M/M/1 by Lindley's recursion; mu is 1."""
    return lindley(generator.exponential(1.0, count) - generator.exponential(1.0 / rho, count), first)


def lindley(steps, first=0.0):
    """Waits before one server; steps are service times less the gaps that follow them."""
    values, wait = np.empty(len(steps)), first
    for index, step in enumerate(steps.tolist()):
        values[index] = wait
        wait = max(0.0, wait + step)
    return values


def share_within(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])


def binomial_4_sigma(share, count):
    return 4 * np.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_quantile_lies_in_its_interval_as_often_as_it_says(q):
    generator = np.random.default_rng(3)
    truth = -np.log(1 - q)
    found = [quantile_interval(generator.exponential(size=2_000), q) for _ in range(600)]
    assert share_within(truth, found) >= 0.95 - binomial_4_sigma(0.95, 600)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_a_quantile_of_alike_neighbours_lies_in_its_interval_as_often_as_it_says(q):
    """Sojourns of M/M/1 at a load of .7: by the binomial alone 44 and 35 % of the intervals hold it."""
    generator = np.random.default_rng(8)
    found = []
    for _ in range(60):
        service = generator.exponential(size=4_000)
        sojourns = service + lindley(service - generator.exponential(1 / 0.7, 4_000))
        found.append(quantile_interval(sojourns[400:], q))
    assert share_within(-np.log(1 - q) / 0.3, found) >= 0.95 - binomial_4_sigma(0.95, 60)


def test_a_quantile_of_alike_neighbours_takes_more_values():
    values = ar1(np.random.default_rng(9), 3_000, 0.9)
    assert quantile_interval(values, 0.99) is None
    assert quantile_interval(np.random.default_rng(9).permutation(values), 0.99) is not None


def test_a_quantile_of_few_values_has_no_interval():
    assert quantile_interval(np.arange(300.0), 0.99) is None
    assert quantile_interval(np.arange(300.0), 0.5) is not None


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_neighbours_that_are_alike_count_for_less(phi):
    found = autocorrelation_time(ar1(np.random.default_rng(5), 100_000, phi))
    assert found == pytest.approx((1 + phi) / (1 - phi), rel=0.1)


def test_a_series_that_never_changes_is_its_own_mean():
    assert autocorrelation_time(np.ones(100)) == 1.0
    assert batch_means(np.ones(100)) == (1.0, 0.0)


def test_batch_means_of_alike_neighbours_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(11)
    found = [batch_means(ar1(generator, 4_000, 0.8)) for _ in range(300)]
    assert share_within(0.0, [(one.low, one.high) for one in found]) >= 0.95 - binomial_4_sigma(0.95, 300)


def test_batches_that_are_too_short_make_the_interval_wider():
    values = ar1(np.random.default_rng(2), 400, 0.98)
    plain = values[: 20 * 20].reshape(20, 20).mean(axis=1).std(ddof=1) / np.sqrt(20) * 2.093
    assert batch_means(values).half_width > 2 * plain


@pytest.mark.slow
def test_batch_means_of_a_queue_hold_the_truth():
    """The published figure for 20 batches of 20,000 waits at rho .5 is 93.3 %."""
    generator = np.random.default_rng(1)
    found = [batch_means(waits(generator, 22_000, 0.5)[2_000:]) for _ in range(250)]
    assert share_within(1.0, [(one.low, one.high) for one in found]) >= 0.933 - binomial_4_sigma(0.933, 250)


@pytest.mark.parametrize(("load", "count"), [(0.95, 200), (0.95, 1_000), (0.9, 200)])
def test_replications_that_hang_together_over_their_whole_length_are_too_short(load, count):
    """Each began empty and is on its way up: their intervals hold the truth in 11 to 54 % of cases."""
    generator = np.random.default_rng(12)
    for _ in range(3):
        with pytest.raises(TooShort, match=r"run too short: .* make it \w+ times as long"):
            warm_up([waits(generator, count, load) for _ in range(10)])


def test_replications_that_are_long_enough_are_not_too_short():
    generator = np.random.default_rng(13)
    shares = [warm_up([waits(generator, 1_000, 0.5) for _ in range(10)]) for _ in range(5)]
    assert all(0.1 <= share < 0.5 for share in shares)


def test_the_start_of_a_series_is_cut_off():
    values = np.concatenate([np.linspace(50, 0, 200), np.zeros(1800)]) + np.random.default_rng(4).normal(
        size=2000
    )
    assert 150 <= mser5(values) <= 260
    assert mser5(np.random.default_rng(4).normal(size=2000)) < 500


@pytest.mark.slow
def test_a_queue_that_began_full_is_saved_and_one_that_began_empty_is_not_spoilt():
    """4,000 waits at rho .5, mean 1; the published means of a run that began empty are 0.993 uncut and 0.973 cut."""
    generator = np.random.default_rng(9)
    for first, uncut, cut in ((100.0, 2.25, 0.973), (0.0, 0.993, 0.973)):
        series = [waits(generator, 4_000, 0.5, first) for _ in range(400)]
        assert np.mean([each.mean() for each in series]) == pytest.approx(uncut, rel=0.05)
        assert np.mean([each[mser5(each) :].mean() for each in series]) == pytest.approx(cut, abs=0.03)


def test_warm_up_is_a_tenth_at_least_and_found_in_the_average():
    generator = np.random.default_rng(8)
    steady = [generator.normal(size=1_000) for _ in range(10)]
    assert warm_up(steady) >= 0.1
    late = [each + np.r_[np.full(300, 5.0), np.zeros(700)] for each in steady]
    assert warm_up(late) == pytest.approx(0.3, abs=0.05)
    assert len(averaged([np.ones(5), np.ones(3)])) == 3


def test_a_run_that_never_becomes_steady_is_too_short():
    grows = [
        np.linspace(0, 100, 1_000) + np.random.default_rng(seed).normal(size=1_000) for seed in range(10)
    ]
    with pytest.raises(TooShort, match="run too short: after half of its 1000 points it is not yet steady"):
        warm_up(grows)


def test_many_questions_are_corrected_by_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_paired_difference_is_seen_or_not():
    first = [1.0, 2.0, 3.0, 4.0]
    seen = difference(first, [1.1, 2.12, 3.09, 4.11])
    assert (seen.count, seen.mean) == (4, pytest.approx(0.105))
    assert seen.p_value == pytest.approx(0.000505, abs=1e-6)
    assert difference(first, [1.2, 1.9, 3.1, 3.8]).p_value > 0.5
    assert difference(first, first).p_value == 1.0
    assert difference([1.0], [2.0]).half_width is None


def test_chance_alone_is_called_a_difference_as_often_as_it_says():
    generator = np.random.default_rng(6)
    p_values = [difference(*generator.normal(size=(2, 6)).tolist()).p_value for _ in range(1_500)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=binomial_4_sigma(0.05, 1_500))


def test_values_of_one_cluster_count_as_little_as_they_say():
    generator, held = np.random.default_rng(3), []
    for _ in range(300):
        sides = []
        for _ in range(2):
            sizes = generator.integers(1, 6, 60)
            cluster = np.repeat(np.arange(60), sizes)
            sides += [
                np.repeat(generator.normal(size=60), sizes) + 0.1 * generator.normal(size=len(cluster)),
                cluster,
            ]
        found = clustered_difference(*sides)
        held.append(found.low < 0 < found.high)
    assert 0.9 < np.mean(held) < 0.98


def test_a_single_cluster_says_nothing_of_chance():
    one, two = np.array([1.0, 2.0]), np.array([4.0, 6.0])
    found = clustered_difference(one, np.array([5, 5]), two, np.array([1, 2]))
    assert found == (3.5, None)

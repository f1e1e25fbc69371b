import numpy as np
import pytest

from sim.intervals import interval, paired, t_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (10, 2.22814), (30, 2.04227)],
)
def test_quantiles_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, rel=2e-6)


def test_quantiles_of_other_coverages_and_of_many_degrees():
    assert t_quantile(4, 0.99) == pytest.approx(4.60409, rel=2e-6)
    assert t_quantile(5, 0.90) == pytest.approx(2.01505, rel=2e-6)
    assert t_quantile(5000) == pytest.approx(1.96044, rel=1e-5)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(7).normal(3.0, 2.0, (2000, 5))
    found = [interval(row) for row in draws.tolist()]
    share = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert share == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 2000))


def test_pairs_see_a_difference_that_is_lost_between_seeds():
    values, others = [0.70, 0.80, 0.75, 0.90], [0.68, 0.78, 0.731, 0.879]
    assert interval(values).low < interval(others).high
    assert paired(values, others).low > 0.015
    assert paired(values, others).mean == pytest.approx(0.02)


def test_one_run_has_a_mean_and_no_interval():
    assert interval([0.5]) == (0.5, None)
    assert (interval([0.5]).low, interval([0.5]).high) == (0.5, 0.5)

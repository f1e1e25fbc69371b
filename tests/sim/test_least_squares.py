"""Non-negative least squares against the definition, and against every choice of columns."""

from itertools import combinations

import numpy as np
import pytest

from sim.least_squares import non_negative, relative
from sim.streams import stream


def best_of_all_choices(rows, values):
    """The least squares of every choice of columns whose costs are not negative: the naive oracle."""
    count, best = rows.shape[1], (np.inf, None)
    for size in range(count + 1):
        for chosen in combinations(range(count), size):
            costs = np.zeros(count)
            costs[[*chosen]] = np.linalg.lstsq(rows[:, [*chosen]], values, rcond=None)[0] if chosen else []
            if (costs >= 0).all():
                best = min(best, (float(np.linalg.norm(rows @ costs - values)), costs.tolist()))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_of_columns_does_better(seed):
    chance = stream(seed, "test.least_squares")
    rows = chance.normal(size=(12, 5)) + chance.choice([0, 1])
    values = chance.normal(size=12)
    error, costs = best_of_all_choices(rows, values)
    found = non_negative(rows, values)
    assert (found >= 0).all()
    assert np.linalg.norm(rows @ found - values) == pytest.approx(error)
    np.testing.assert_allclose(found, costs, atol=1e-8)


def test_costs_that_are_there_are_found_in_whatever_units():
    rows = stream(1, "test.units").uniform(0, 1, (50, 4)) * [1.0, 1e6, 1e-6, 1e3]
    costs = np.array([3.0, 2e-6, 0.0, 5e-3])
    np.testing.assert_allclose(non_negative(rows, rows @ costs), costs, rtol=1e-8, atol=1e-9)


def test_what_was_never_there_costs_nothing():
    rows = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert non_negative(rows, np.array([2.0, 4.0])).tolist() == pytest.approx([2.0, 0.0])
    assert non_negative(np.zeros((3, 0)), np.ones(3)).tolist() == []


def test_relative_errors_count_a_small_value_as_much_as_a_large_one():
    rows = np.array([[1.0], [1.0]])
    (cost,) = relative(rows, np.array([1.0, 100.0]))
    least = min(np.linspace(0.5, 3, 2501), key=lambda x: (x / 1 - 1) ** 2 + (x / 100 - 1) ** 2)
    assert cost == pytest.approx(least, abs=1e-3)

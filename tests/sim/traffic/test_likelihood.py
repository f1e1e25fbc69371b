from math import pi

import numpy as np
import pytest

from sim.traffic.likelihood import (
    clipped_log_normal,
    digamma,
    distance,
    followed,
    gamma_gaps,
    likeliest_gaps,
    trigamma,
    weibull_gaps,
    zipf_exponent,
)

EULER = 0.5772156649015329


def drawn(family, shape, count=20_000, seed=1):
    random = np.random.default_rng(seed)
    gaps = random.standard_gamma(shape, count) if family == "gamma" else random.weibull(shape, count)
    return gaps[gaps > 0] / gaps[gaps > 0].mean()


def counted(values):
    return np.unique(values, return_counts=True)


@pytest.mark.parametrize("left", [[], [5.0]])
def test_turns_that_all_come_at_once_are_a_thousand_at_most(left):
    share, mu, sigma = followed(np.zeros(3000), np.array(left))
    assert 1 / (1 - share) == pytest.approx(1000)
    assert (mu, sigma) == (-np.inf, 0.0)


def test_digamma_and_trigamma_have_their_known_values():
    assert digamma(1) == pytest.approx(-EULER, abs=1e-12)
    assert digamma(5) == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4 - EULER, abs=1e-12)
    assert trigamma(1) == pytest.approx(pi**2 / 6, abs=1e-12)
    assert trigamma(0.5) == pytest.approx(pi**2 / 2, abs=1e-12)


@pytest.mark.parametrize("shape", [0.05, 0.23, 0.87, 1, 3, 50])
def test_the_shape_of_gamma_gaps_is_found_within_four_standard_errors(shape):
    law = likeliest_gaps(drawn("gamma", shape))[0]
    assert abs(gamma_gaps(drawn("gamma", shape)).shape - shape) < 4 * law.error
    if shape != 1:
        assert law.family == "gamma"


@pytest.mark.parametrize("shape", [0.3, 0.5, 1, 3])
def test_the_shape_of_weibull_gaps_is_found_within_four_standard_errors(shape):
    law = weibull_gaps(drawn("weibull", shape))
    assert abs(law.shape - shape) < 4 * law.error
    if shape != 1:
        assert likeliest_gaps(drawn("weibull", shape))[0].family == "weibull"


@pytest.mark.parametrize("family", ["gamma", "weibull"])
def test_standard_errors_are_those_that_repeated_draws_have(family):
    find = gamma_gaps if family == "gamma" else weibull_gaps
    found = [find(drawn(family, 0.6, 500, seed)) for seed in range(200)]
    spread = np.std([law.shape for law in found])
    assert spread == pytest.approx(found[0].error, rel=0.2)


def test_no_other_shape_is_likelier():
    gaps = drawn("gamma", 0.4, 300)
    assert gamma_gaps(gaps).log_likelihood > likelihood_of_gamma(gaps, gamma_gaps(gaps).shape * 1.01)
    assert gamma_gaps(gaps).log_likelihood > likelihood_of_gamma(gaps, gamma_gaps(gaps).shape / 1.01)
    assert gamma_gaps(gaps).log_likelihood == pytest.approx(likelihood_of_gamma(gaps, gamma_gaps(gaps).shape))


def likelihood_of_gamma(gaps, shape):
    """The textbook's sum, one gap after the other; scale 1 / shape."""
    from math import lgamma, log  # noqa: PLC0415

    return sum((shape - 1) * log(gap) - gap * shape + shape * log(shape) - lgamma(shape) for gap in gaps)


def test_both_families_agree_on_exponential_gaps():
    gaps = drawn("gamma", 1)
    assert gamma_gaps(gaps).log_likelihood == pytest.approx(-len(gaps), abs=4)
    assert weibull_gaps(gaps).log_likelihood == pytest.approx(-len(gaps), abs=4)


def test_too_few_gaps_have_no_law():
    assert likeliest_gaps(np.array([1.0, 2.0])) == []


@pytest.mark.parametrize(
    ("median", "sigma", "low", "high"),
    [(1100, 1.36, 4, 7437), (1100, 1.36, 400, 2000), (5, 0.85, 1, 40), (96, 1.0, 4, 8192)],
)
def test_clipping_does_not_bend_the_log_normal_law(median, sigma, low, high):
    random = np.random.default_rng(2)
    values = np.exp(np.log(median) + sigma * random.standard_normal(20_000))
    values, counts = counted(np.clip(np.rint(values), low, high).astype(np.int64))
    law = clipped_log_normal(values, counts)
    assert np.exp(law.mu) == pytest.approx(median, rel=0.03)
    assert law.sigma == pytest.approx(sigma, rel=0.03)
    assert distance(values, counts, law.below) < 0.012


def test_a_distance_is_the_largest_at_any_whole_value():
    values, counts = counted(np.array([2, 2, 5, 9]))
    steps = {1: 0, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.75, 6: 0.75, 7: 0.75, 8: 0.75, 9: 1.0}
    uniform = {value: value / 9 for value in range(10)}
    naive = max(abs(steps[value] - uniform[value]) for value in steps)
    assert distance(values, counts, uniform.__getitem__) == pytest.approx(naive)


def test_a_law_that_begins_below_what_was_seen_is_far_from_it():
    assert distance(*counted(np.array([5, 5, 9])), lambda value: min(value / 9, 1)) == pytest.approx(4 / 9)


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0, 1.5])
def test_the_exponent_of_zipfs_law_is_found(exponent):
    weights = np.arange(1, 6.0) ** -exponent
    exact = np.rint(1e6 * weights / weights.sum()).astype(np.int64)
    assert zipf_exponent(exact) == pytest.approx(exponent, abs=1e-4)


def test_ranks_that_are_steeper_the_other_way_have_the_exponent_zero():
    assert zipf_exponent(np.array([1, 2, 3])) == pytest.approx(0.0, abs=1e-9)

"""Arrivals have the rate, the variation and the course that they were set to have."""

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.traffic.arrivals import ArrivalSettings, Flash, Pace, renewals, weibull_cv

KEY = "workload.arrivals"
SEEDS = range(20)


def arrivals(seed=1, count=50_000, rate=5.0, **settings):
    asked = ArrivalSettings(**settings)
    asked.check(KEY)
    return Pace(asked, KEY).when(renewals(asked, rate, count / rate, seed, "arrivals"))


def dispersion(times_s, window_s):
    """Variance over mean of the counts in windows: 1 for Poisson."""
    counts = np.bincount((times_s // window_s).astype(int))[:-1]
    return counts.var(ddof=1) / counts.mean()


def ks_p(gaps, rate):
    """The p-value of exponential gaps, by Kolmogorov's series."""
    ordered, count = np.sort(gaps), len(gaps)
    law = 1 - np.exp(-rate * ordered)
    ranks = np.arange(1, count + 1)
    gap = max((ranks / count - law).max(), (law - (ranks - 1) / count).max())
    terms = np.arange(1, 101)
    return float(2 * np.sum((-1.0) ** (terms - 1) * np.exp(-2 * terms**2 * count * gap**2)))


def test_poisson_counts_are_as_dispersed_as_their_mean():
    times_s = arrivals(count=60_000)
    assert dispersion(times_s[times_s < 10_010], 10.0) == pytest.approx(1.0, abs=0.18)


def test_poisson_gaps_are_exponential_on_many_seeds():
    p_values = [ks_p(np.diff(arrivals(seed, 4_000)), 5.0) for seed in SEEDS]
    assert min(p_values) > 0.001
    assert sum(value < 0.01 for value in p_values) <= 1


@pytest.mark.parametrize(
    ("family", "cv"), [("gamma", 0.5), ("gamma", 3.0), ("weibull", 0.5), ("weibull", 2.0)]
)
def test_gaps_vary_as_much_as_they_are_set_to(family, cv):
    gaps = np.diff(arrivals(count=200_000, family=family, cv=cv))
    assert gaps.mean() == pytest.approx(0.2, rel=4 * cv / np.sqrt(len(gaps)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_the_cv_of_weibull_gaps_is_that_of_the_formula():
    assert weibull_cv(1.0) == pytest.approx(1.0)
    assert weibull_cv(0.5) == pytest.approx(np.sqrt(5))


def test_constant_gaps_are_all_alike():
    assert np.allclose(np.diff(arrivals(count=100, family="constant")), 0.2)


def test_bursts_keep_the_rate_in_the_long_run_and_are_bursts():
    times_s = arrivals(count=200_000, family="onoff", on_s=2.0, off_s=6.0)
    assert len(times_s) == pytest.approx(200_000, rel=0.05)
    assert dispersion(times_s, 10.0) > 10


def test_a_flash_crowd_multiplies_the_rate_for_its_time():
    times_s = arrivals(count=20_000, flashes=[Flash(at_s=1_000.0, for_s=100.0, times=8.0)])
    within = ((times_s >= 1_000) & (times_s < 1_100)).sum()
    before = (times_s < 1_000).sum()
    assert within == pytest.approx(4_000, abs=4 * np.sqrt(4_000))
    assert before == pytest.approx(5_000, abs=4 * np.sqrt(5_000))


def test_a_curve_multiplies_window_by_window_and_begins_again():
    times_s = arrivals(count=40_000, curve=[0.5, 1.5, 0.0], curve_s=100.0)
    windows = np.bincount((times_s // 100).astype(int))[:30].reshape(10, 3).sum(axis=0)
    for count, times in zip(windows, (0.5, 1.5, 0.0), strict=True):
        assert count == pytest.approx(5_000 * times, abs=4 * np.sqrt(5_000 * max(times, 0.01)))


def test_longer_traffic_begins_with_the_shorter_one():
    short, long = arrivals(count=500, family="gamma", cv=2.0), arrivals(count=50_000, family="gamma", cv=2.0)
    assert np.array_equal(short, long[: len(short)])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"family": "chaos"}, "family is 'chaos', but must be one of poisson, gamma"),
        ({"family": "gamma"}, "shape is None, but must be given for this family"),
        ({"family": "gamma", "cv": 1.0, "shape": 1.0}, "not both"),
        ({"family": "gamma", "cv": 50.0}, "cv is 50.0, but must be such that"),
        ({"cv": 2.0}, "cv is 2.0, but must be null unless"),
        ({"family": "onoff", "on_s": 1.0}, "off_s is None, but must be a time"),
        ({"curve": [1.0]}, "curve_s is None, but must be the length"),
        ({"curve": [0.0], "curve_s": 1.0}, "above zero in one window"),
        ({"curve": [float("nan")], "curve_s": 1.0}, "but must be a number of at least 0"),
        ({"flashes": [Flash(at_s=0.0, for_s=1.0, times=-1.0)]}, "times is -1.0, but must be above 0"),
    ],
)
def test_what_is_no_process_is_refused(settings, told):
    with pytest.raises(BadSettings, match=told):
        ArrivalSettings(**settings).check(KEY)

"""A check passes, fails, or says that it cannot know."""

import numpy as np
import pytest

from sim.checks import (
    Check,
    at_least,
    at_most,
    equal_share,
    evidence,
    gains,
    grown,
    no_worse,
    overall,
    p99_at_most,
    table,
    within,
)


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (at_most("x", 3, 3), "pass"),
        (at_most("x", 3.1, 3), "fail"),
        (at_most("x", None, 3), "inconclusive"),
        (at_least("x", 3, 3), "pass"),
        (at_least("x", 2.9, 3), "fail"),
        (at_least("x", None, 3), "inconclusive"),
        (evidence("x", 1, 1), "pass"),
        (evidence("x", 0, 1), "inconclusive"),
        (evidence("x", None, 1), "inconclusive"),
        (within("x", 2.0, 3, was_due=True), "pass"),
        (within("x", 4.0, 3, was_due=True), "fail"),
        (within("x", None, 3, was_due=True), "fail"),
        (within("x", None, 3, was_due=False), "inconclusive"),
    ],
)
def test_verdict(check, verdict):
    assert check.verdict == verdict


def test_p99_of_a_hundred_samples_is_judged_as_it_is():
    values = np.arange(1.0, 101.0)
    assert p99_at_most("x", values, 99.01).verdict == "pass"
    assert p99_at_most("x", values, 99.0).verdict == "fail"
    assert p99_at_most("x", values, 99.01).value == pytest.approx(99.01)


def test_with_fewer_samples_the_maximum_can_show_that_it_holds_but_not_that_it_fails():
    few = np.array([0.1, 0.2, 0.9])
    assert p99_at_most("x", few, 1.0).verdict == "pass"
    assert p99_at_most("x", few, 0.5).verdict == "inconclusive"
    assert "n=3" in p99_at_most("x", few, 0.5).note
    assert p99_at_most("x", few[:0], 0.5).verdict == "inconclusive"


def test_a_bound_grows_with_the_tail_in_calm_but_never_falls_below_its_floor():
    calm = np.full(100, 2.0)
    assert grown(calm, 3.0, 1.0) == pytest.approx(6.0)
    assert grown(calm, 3.0, 10.0) == 10.0
    assert grown(calm[:99], 3.0, 1.0) == 1.0


def test_one_failure_outweighs_what_is_undecided_and_that_outweighs_what_passes():
    good, open_, bad = at_most("x", 1, 2), at_most("x", None, 2), at_most("x", 3, 2)
    assert overall([good, open_, bad]) == "fail"
    assert overall([good, open_]) == "inconclusive"
    assert overall([good]) == "pass"
    assert overall([]) == "inconclusive"


def test_table_lines_up_and_says_what_each_check_rests_on():
    checks = [
        Check("requests lost", 0, "<=", 0, "pass", "n=600"),
        Check("p99, s", 0.123456, "<=", 1.5, "pass"),
        Check("share", None, ">=", 0.2, "inconclusive", "n=0"),
    ]
    assert table(checks).split("\n") == [
        "pass          requests lost       0 <= 0    n=600",
        "pass          p99, s         0.1235 <= 1.5",
        "inconclusive  share               - >= 0.2  n=0",
    ]
    assert not table([])


def test_a_share_is_only_wrong_when_chance_does_not_explain_it():
    assert equal_share("x", 0.04, 0.05, 20, 2).verdict == "pass"
    assert equal_share("x", 0.10, 0.05, 20, 2).verdict == "inconclusive"  # 3 sigma of 20 tosses: 0.335
    assert equal_share("x", 0.10, 0.05, 1_000, 2).verdict == "fail"
    assert equal_share("x", None, 0.05, 0, 2).verdict == "inconclusive"
    assert equal_share("x", None, 0.05, 9, 0).verdict == "inconclusive"  # nobody is left to share anything
    assert "0.335" in equal_share("x", 0.10, 0.05, 20, 2, "a 12 b 8").note


@pytest.mark.parametrize(
    ("gained", "verdict"),
    [
        ([0.2, 0.21, 0.19], "pass"),
        ([0.1, 0.11, 0.09], "fail"),
        ([0.14, 0.2, 0.09], "inconclusive"),
        ([1.0, -0.5, 0.4], "inconclusive"),
        ([0.2], "pass"),
        ([0.1], "fail"),
        ([], "inconclusive"),
    ],
)
def test_a_gain_is_judged_by_its_mean_and_its_interval(gained, verdict):
    assert gains("better", gained, 0.15).verdict == verdict


@pytest.mark.parametrize(
    ("gained", "verdict"),
    [
        ([0.001, -0.001, 0.0], "pass"),
        ([-0.005, -0.006, -0.004], "pass"),
        ([-0.02, -0.021, -0.019], "fail"),
        ([-0.02, 0.02, 0.0], "inconclusive"),
        ([-0.009], "pass"),
        ([-0.011], "fail"),
        ([], "inconclusive"),
    ],
)
def test_no_loss_beyond_a_margin_is_judged_by_the_whole_interval(gained, verdict):
    assert no_worse("as good", gained, 0.01).verdict == verdict


def test_what_was_published_stands_beside_ours():
    line = table([at_least("share", 0.5, 0.4, "n=3", published="67 %")])
    assert line == "pass  share  0.5 >= 0.4  n=3; published: 67 %"

"""How each class judges what it has measured."""

import pytest

from sim.gate.absolute import Absolute
from sim.gate.counted import Counted
from sim.gate.exact import FIGURES, RUNS, Exact
from sim.gate.kinds import Measured
from sim.gate.ratios import Ratios, median_interval
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS, WARN
from sim.gate.runs import RUNS as PLAYED
from sim.gate.runs import Counts
from sim.gate.show import text


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [(7, 7, PASS), (7, 8, FAIL), (7, 6, FAIL), ("ab", "ab", PASS), ("ab", "ba", FAIL)],
)
def test_exact_rows_are_equal_or_fail(base, head, verdict):
    assert Exact().judge(base, Measured("A/failover/events", head)).verdict == verdict


@pytest.mark.parametrize(
    ("head", "verdict"), [(900, PASS), (1_020, PASS), (1_021, WARN), (1_050, WARN), (1_051, FAIL)]
)
def test_instructions_warn_beyond_two_per_cent_and_fail_beyond_five(head, verdict):
    row = Counted().judge(1_000, Measured("B/route_least_loaded", head))
    assert row.verdict == verdict
    assert row.delta == pytest.approx(head / 1_000 - 1)


def test_far_fewer_instructions_pass_and_ask_for_a_new_baseline():
    row = Counted().judge(1_000, Measured("B/route_least_loaded", 940))
    assert (row.verdict, row.note) == (PASS, "6.0% less: renew the baseline, so that it stays so")
    assert "\nB/route_least_loaded: 6.0% less: renew the baseline" in text([row], {})
    assert Counted().judge(1_000, Measured("B/route_least_loaded", 960)).note == ""


@pytest.mark.parametrize(
    ("interval", "least", "noise", "verdict"),
    [
        ((9.8, 10.2), 9.9, 0.01, PASS),
        ((15.1, 16.0), 15.1, 0.01, FAIL),
        ((14.9, 16.0), 15.5, 0.01, PASS),
        ((15.1, 16.0), 14.9, 0.01, PASS),
        ((15.1, 16.0), 15.1, 0.051, INCONCLUSIVE),
        ((9.8, 10.2), 9.9, 0.051, INCONCLUSIVE),
    ],
)
def test_a_ratio_fails_when_its_interval_and_its_least_are_beyond_the_limit(interval, least, noise, verdict):
    head = Measured(
        "C/quota_check", sum(interval) / 2, {"interval": interval, "noise": noise, "least": least}
    )
    row = Ratios().judge(10.0, head)
    assert (row.verdict, row.noise) == (verdict, noise)


@pytest.mark.parametrize(
    ("name", "head", "verdict"),
    [
        ("D/quota_check/mean_us", 2.1, PASS),
        ("D/quota_check/mean_us", 2.2, WARN),
        ("D/quota_check/mean_us", 6.4, FAIL),
        ("D/route_least_loaded/per_s", 10_000.0, PASS),
        ("D/route_least_loaded/per_s", 9_000.0, WARN),
        ("D/route_least_loaded/per_s", 3_000.0, FAIL),
    ],
)
def test_published_figures_block_at_three_times_only(name, head, verdict):
    kind = Absolute()
    assert kind.judge(kind.base(name, None), Measured(name, head)).verdict == verdict


@pytest.mark.parametrize(
    ("name", "head", "turn_ns", "verdict"),
    [
        ("D/quota_check/mean_us", 6.4, 70.0, FAIL),
        ("D/quota_check/mean_us", 6.4, 60.0, FAIL),
        ("D/quota_check/mean_us", 6.4, 75.0, INCONCLUSIVE),
        ("D/quota_check/mean_us", 13.0, 140.0, FAIL),  # beyond what so slow a machine makes of it
        ("D/quota_check/mean_us", 12.0, 140.0, INCONCLUSIVE),
        ("D/quota_check/mean_us", 6.2, 140.0, WARN),
        ("D/route_least_loaded/per_s", 3_000.0, 140.0, INCONCLUSIVE),
        ("D/route_least_loaded/per_s", 1_600.0, 140.0, FAIL),
    ],
)
def test_a_slow_machine_alone_makes_no_published_figure_block(name, head, turn_ns, verdict):
    kind = Absolute()
    row = kind.judge(kind.base(name, None), Measured(name, head, {"turn_ns": turn_ns}))
    assert row.verdict == verdict
    assert ("a turn of a plain loop takes" in row.note) == (verdict == INCONCLUSIVE)


def test_the_interval_of_a_median_holds_it_and_is_narrow_where_values_agree():
    middle, (low, high) = median_interval([1.0, 1.1, 1.2, 1.3, 50.0])
    assert middle == 1.2
    assert low <= 1.1
    assert high >= 1.3
    assert median_interval([2.0] * 9) == (2.0, (2.0, 2.0))


def test_rows_of_class_a_are_the_runs_and_counts_that_are_played():
    assert tuple(PLAYED) == RUNS
    assert tuple(Counts.__slots__) == FIGURES

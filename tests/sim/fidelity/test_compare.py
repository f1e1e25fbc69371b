import numpy as np
import pandas as pd
import pytest

from sim.fidelity.cases import Marks
from sim.fidelity.compare import (
    cells,
    distances,
    equal_share,
    error_interval,
    noise_floor,
    shares,
    wasserstein,
)

TIGHT, LOOSE = Marks(mean=0.02, p99=0.04), Marks(mean=0.2, p99=0.2)


@pytest.fixture
def run(make_run, drawn):
    return make_run(drawn(20.0), drawn(3.0, seed=2))


def by_name(made):
    return {each.name: each for each in made}


def slower(run, factor):
    """The same run, each of its times so much longer."""
    longer = run.copy()
    for name in ("first_token_ns", "finished_ns"):
        longer[name] = run["arrival_ns"] + ((run[name] - run["arrival_ns"]) * factor).astype("int64")
    return longer


def test_a_run_compared_with_itself_is_nothing_off_and_passes(run):
    for cell in cells([run, run], [run, run], TIGHT, 0.1):
        assert (cell.error, cell.floor) == (0.0, 0.0)
        assert cell.verdict == ("pass" if cell.statistic in ("mean", "p99", "") else "shown")
    for share in shares([run, run], [run, run], is_calm=True):
        assert share.verdict == "pass"
        assert share.value == (0.0 if share.op == "+-" else 1.0)
    for each in distances([run, run], [run, run]):
        assert (each.wasserstein, each.floor, each.median_error, each.median_floor) == (0, 0, 0, 0)


def test_five_percent_too_slow_is_seen_with_its_sign_and_fails(run):
    found = by_name(cells([run, run], [slower(run, 1.05)] * 2, TIGHT, 0.1))
    for name in ("TTFT mean", "TTFT p50", "TTFT p90", "TTFT p99", "TPOT mean", "E2E mean", "E2E p99"):
        assert found[name].error == pytest.approx(0.05, abs=1e-4)
    assert {found[name].verdict for name in ("TTFT mean", "TTFT p99", "TPOT mean", "E2E mean")} == {"fail"}
    assert found["TTFT p50"].verdict == "shown"


def test_five_percent_too_fast_has_the_other_sign_and_may_be_within_wider_marks(run):
    found = by_name(cells([run, run], [slower(run, 0.95)] * 2, LOOSE, 0.1))
    assert found["E2E mean"].error == pytest.approx(-0.05, abs=1e-4)
    assert found["E2E mean"].verdict == "pass"


def test_errors_of_ttft_and_tpot_that_cancel_in_e2e_are_seen(make_run):
    real = make_run([20.0] * 200, [2.0] * 200)
    other = make_run([24.0] * 200, [1.6] * 200)
    found = by_name(cells([real, real], [other, other], TIGHT, 0.1))
    assert found["E2E mean"].error == pytest.approx(0, abs=1e-6)
    assert found["TTFT mean"].error == pytest.approx(0.2)
    assert found["TPOT mean"].error == pytest.approx(-0.2)


def test_an_error_within_twice_the_noise_floor_passes(run):
    noisy = [run, slower(run, 1.06)]
    found = by_name(cells(noisy, [slower(run, 1.10)] * 2, TIGHT, 0.1))["E2E mean"]
    assert found.floor == pytest.approx(0.06 / 1.03, abs=1e-4)
    assert found.error == pytest.approx(1.10 / 1.03 - 1, abs=1e-4)
    assert found.verdict == "pass"
    assert found.floors == pytest.approx(found.error / found.floor)


def test_a_noise_floor_that_is_too_large_decides_nothing(run):
    found = by_name(cells([run, slower(run, 1.3)], [slower(run, 2.0)] * 2, TIGHT, 0.1))
    assert found["E2E mean"].verdict == "inconclusive"
    assert found["throughput"].verdict == "pass"


def test_too_few_requests_for_a_p99_decide_nothing(make_run):
    short = make_run([20.0] * 99, [2.0] * 99)
    found = by_name(cells([short, short], [short, short], TIGHT, 0.1))["TTFT p99"]
    assert (found.real, found.verdict) == (None, "inconclusive")


def test_without_marks_everything_is_shown_and_nothing_judged(run):
    assert {cell.verdict for cell in cells([run, run], [slower(run, 3.0)] * 2, None, 0.1)} == {"shown"}


def test_a_noise_floor_is_the_mean_distance_of_all_pairs():
    assert noise_floor([10.0, 10.0, 13.0]) == pytest.approx((0 + 3 + 3) / 3 / 11)
    assert noise_floor([10.0]) is None


def test_fewer_than_five_thousand_requests_show_the_interval_of_the_error(run):
    found = by_name(cells([run, run], [slower(run, 1.05)] * 2, TIGHT, 0.1))["E2E p99"]
    low, high = found.interval
    assert low < 0.05 < high
    assert found.n == len(run)


def test_the_interval_shrinks_with_more_requests_and_is_the_same_each_time(drawn):
    few, many = drawn(10.0, 200), drawn(10.0, 8_000)
    wide, narrow = error_interval(few, few, 99.0), error_interval(many, many, 99.0)
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2
    assert error_interval(few, few, 99.0) == wide


def test_one_decision_in_ten_that_differs_is_counted_under_its_name(run):
    other = run.copy()
    other.loc[other.index % 10 == 0, "cached_tokens_ram"] = 16
    assert equal_share(run, other, "hit tokens") == pytest.approx(0.9)
    assert equal_share(run, other, "replica") == 1.0
    assert equal_share(run, other, "all decisions") == pytest.approx(0.9)
    found = by_share(shares([run, run], [other, other], is_calm=True))
    assert [found[name].verdict for name in ("replica", "hit tokens", "outcome")] == ["pass", "fail", "pass"]
    assert found["hit ratio"].value == pytest.approx(0.016)
    assert found["hit ratio"].verdict == "fail"


def test_decisions_at_a_stressed_load_are_shown_only(run):
    moved = run.assign(replica="b")
    found = by_share(shares([run, run], [moved, moved], is_calm=False))
    assert (found["replica"].value, found["replica"].verdict) == (0.0, "shown")


def test_a_request_that_is_missing_on_one_side_is_not_decided_the_same(run):
    assert equal_share(run, run.iloc[:300], "outcome") == pytest.approx(0.75)


def test_refusals_that_reality_did_not_have_are_counted_and_have_no_latency(run):
    other = run.copy()
    other.loc[:39, "outcome"] = "rejected"
    other.loc[:39, ["first_token_ns"]] = pd.NA
    found = by_share(shares([run, run], [other, other], is_calm=True))["refused"]
    assert (found.value, found.verdict) == (pytest.approx(0.1), "fail")
    assert by_name(cells([run, run], [other, other], TIGHT, 0.1))["E2E mean"].n == 360


def by_share(made):
    return {each.name: each for each in made}


def test_a_distribution_that_is_shifted_is_as_far_away_as_it_was_shifted(drawn):
    real = drawn(10.0, 2_000)
    assert wasserstein(real, real + 1.0) == pytest.approx(1.0 / real.mean())
    assert wasserstein(real, np.flip(real)) == 0.0


def test_single_requests_can_be_wrong_though_their_distribution_is_right(make_run, drawn):
    times = drawn(20.0)
    real, mirrored = make_run(times, [2.0] * 400), make_run(times[::-1], [2.0] * 400)
    found = {each.metric: each for each in distances([real, real], [mirrored, mirrored])}["TTFT"]
    assert found.wasserstein == pytest.approx(0, abs=1e-6)
    assert found.median_error > 0.2

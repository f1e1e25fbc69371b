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
    spread_of,
    wasserstein,
)

TIGHT, LOOSE = Marks(mean=0.02, p99=0.04), Marks(mean=0.2, p99=0.2)


def by_name(made):
    return {each.name: each for each in made}


def test_a_run_compared_with_itself_is_nothing_off_and_passes(run):
    for cell in cells([run, run], [run, run], TIGHT):
        assert (cell.error, cell.floor) == (0.0, 0.0)
        assert cell.verdict == ("pass" if cell.statistic in ("mean", "p99", "") else "shown")
    for share in shares([run, run], [run, run], is_calm=True):
        assert share.verdict == "pass"
        assert share.value == (0.0 if share.op == "+-" else 1.0)
    for each in distances([run, run], [run, run]):
        assert (each.wasserstein, each.floor, each.median_error, each.median_floor) == (0, 0, 0, 0)


def test_five_percent_too_slow_is_seen_with_its_sign_and_fails(run, slower):
    found = by_name(cells([run, run], [slower(run, 1.05)] * 2, TIGHT))
    for name in ("TTFT mean", "TTFT p50", "TTFT p90", "TTFT p99", "TPOT mean", "E2E mean", "E2E p99"):
        assert found[name].error == pytest.approx(0.05, abs=1e-4)
    assert {found[name].verdict for name in ("TTFT mean", "TTFT p99", "TPOT mean", "E2E mean")} == {"fail"}
    assert found["TTFT p50"].verdict == "shown"


def test_five_percent_too_fast_has_the_other_sign_and_may_be_within_wider_marks(run, slower):
    found = by_name(cells([run, run], [slower(run, 0.95)] * 2, LOOSE))
    assert found["E2E mean"].error == pytest.approx(-0.05, abs=1e-4)
    assert found["E2E mean"].verdict == "pass"


def test_errors_of_ttft_and_tpot_that_cancel_in_e2e_are_seen(make_run):
    real = make_run([20.0] * 200, [2.0] * 200)
    other = make_run([24.0] * 200, [1.6] * 200)
    found = by_name(cells([real, real], [other, other], TIGHT))
    assert found["E2E mean"].error == pytest.approx(0, abs=1e-6)
    assert found["TTFT mean"].error == pytest.approx(0.2)
    assert found["TPOT mean"].error == pytest.approx(-0.2)


def test_an_error_within_twice_the_noise_floor_passes(run, slower):
    noisy = [run, slower(run, 1.04)]
    found = by_name(cells(noisy, [slower(run, 1.08)] * 2, TIGHT))["E2E mean"]
    assert found.floor == pytest.approx(0.04 / 1.02, abs=1e-4)
    assert found.error == pytest.approx(1.08 / 1.02 - 1, abs=1e-4)
    assert found.verdict == "pass"
    assert found.limit == pytest.approx(2 * found.floor)
    assert found.floors == pytest.approx(found.error / found.floor)


def test_a_noise_floor_that_is_too_large_passes_nothing_however_small_the_error(run, slower):
    found = by_name(cells([run, slower(run, 1.3)], [slower(run, 1.15)] * 2, TIGHT))
    assert abs(found["E2E mean"].error) < 1e-4
    assert found["E2E mean"].verdict == "inconclusive"
    assert found["throughput"].verdict == "pass"
    found = by_name(cells([run, slower(run, 1.3)], [slower(run, 1.15)] * 2, TIGHT, 20.0))
    assert found["E2E mean"].verdict == "pass"


def test_rounds_that_agree_decide_where_runs_do_not(run, slower):
    noisy = [run, slower(run, 1.3)]
    for factors, verdict in (
        ((1.01, 1.01), "pass"),  # the simulation knows how slow the machine was
        ((1.05, 1.05), "inconclusive"),  # and is off by more than the mark, and less than the runs
        ((0.995, 1.025), "pass"),
        ((1.02, 1.04), "pass"),  # within twice what rounds differ
        ((0.97, 1.05), "inconclusive"),  # they do not agree
        ((2.0, 2.0), "fail"),
    ):
        followed = [slower(each, factor) for each, factor in zip(noisy, factors, strict=True)]
        cell = by_name(cells(noisy, followed, TIGHT))["E2E mean"]
        assert cell.spread == pytest.approx(factors[1] - factors[0], abs=1e-3)
        assert cell.floor > 2 * cell.mark
        assert (factors, cell.verdict) == (factors, verdict)


def test_the_spread_of_errors_is_over_rounds_and_not_over_draws():
    assert spread_of([10.0, 20.0], [11.0, 13.0, 20.0, 30.0]) == pytest.approx(0.05)
    assert spread_of([10.0], [11.0]) is None
    assert spread_of([0.0, 1.0], [1.0, 1.0]) is None


def test_an_error_beyond_twice_a_large_noise_floor_fails(run, slower):
    found = by_name(cells([run, slower(run, 1.3)], [slower(run, 2.0)] * 2, TIGHT))
    assert found["E2E mean"].error > 2 * found["E2E mean"].floor
    assert found["E2E mean"].verdict == "fail"


def test_too_few_requests_for_a_p99_decide_nothing(make_run):
    short = make_run([20.0] * 99, [2.0] * 99)
    found = by_name(cells([short, short], [short, short], TIGHT))["TTFT p99"]
    assert (found.real, found.verdict) == (None, "inconclusive")


def test_without_marks_everything_is_shown_and_nothing_judged(run, slower):
    assert {cell.verdict for cell in cells([run, run], [slower(run, 3.0)] * 2, None)} == {"shown"}


def test_a_noise_floor_is_the_mean_distance_of_all_pairs():
    assert noise_floor([10.0, 10.0, 13.0]) == pytest.approx((0 + 3 + 3) / 3 / 11)
    assert noise_floor([10.0]) is None


def test_fewer_than_five_thousand_requests_show_the_interval_of_the_error(run, slower):
    shuffled = run.assign(finished_ns=run["finished_ns"] + np.roll(np.arange(len(run)) * 5_000, 7))
    found = by_name(cells([run, run], [slower(shuffled, 1.05)] * 2, TIGHT))["E2E p99"]
    low, high = found.interval
    assert low < found.error < high
    assert found.n == len(run)


def test_a_request_stays_with_its_twin_so_that_what_both_share_widens_no_interval(drawn):
    times = drawn(10.0, 200)
    low, high = error_interval([(times, times * 1.05)], 99.0)
    assert (low, high) == (pytest.approx(0.05), pytest.approx(0.05))


def test_several_simulations_of_a_run_count_as_their_mean_and_widen_no_interval(run, slower):
    real = [run, slower(run, 1.02)]
    once, thrice = [slower(run, 1.04), slower(run, 1.08)], []
    for each in once:
        thrice += [each, slower(each, 1.03), slower(each, 0.97)]
    one, several = by_name(cells(real, once, LOOSE)), by_name(cells(real, thrice, LOOSE))
    for name, cell in one.items():
        if cell.error is not None and cell.metric != "throughput":
            assert several[name].error == pytest.approx(cell.error, abs=1e-3)
            assert (several[name].floor, several[name].interval) == (cell.floor, cell.interval)
    assert [share.value for share in shares(real, thrice, is_calm=True)] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    half = [run, run.assign(replica="b")] * 2
    assert by_share(shares(real, half, is_calm=True))["replica"].value == 0.5
    near, far = (
        next(each for each in distances(real, runs) if each.metric == "E2E")
        for runs in ([run, run, slower(run, 1.02), slower(run, 1.02)], [slower(run, 1.02)] * 2 + [run] * 2)
    )
    assert near.wasserstein == near.median_error == 0.0
    assert far.wasserstein == pytest.approx(0.02, rel=0.05)  # each is held against its own real run


def test_the_interval_shrinks_with_more_requests_and_is_the_same_each_time(drawn):
    few, many = ([(drawn(10.0, count), drawn(10.0, count, seed=2))] for count in (200, 8_000))
    wide, narrow = error_interval(few, 99.0), error_interval(many, 99.0)
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2
    assert error_interval(few, 99.0) == wide


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


def test_one_swapped_decision_in_fifty_is_found_and_fails(run):
    other = run.copy()
    other.loc[other.index % 50 == 0, "replica"] = "b"
    found = by_share(shares([run, run], [other, other], is_calm=True))
    assert found["replica"].value == pytest.approx(0.98)
    verdicts = [found[name].verdict for name in ("replica", "hit tokens", "outcome", "all decisions")]
    assert verdicts == ["fail", "pass", "pass", "fail"]


def test_decisions_that_reality_does_not_repeat_are_not_decided_unless_they_are_far_off(run):
    other = run.copy()
    other.loc[other.index % 25 == 0, "replica"] = "b"
    assert by_share(shares([run, other], [other, run], is_calm=True))["replica"].verdict == "inconclusive"
    moved = run.assign(replica="c")
    assert by_share(shares([run, other], [moved, moved], is_calm=True))["replica"].verdict == "fail"


def test_a_hit_ratio_that_reality_does_not_repeat_is_not_decided(run):
    other = run.assign(cached_tokens_ram=2)
    found = by_share(shares([run, other], [run, other], is_calm=True))["hit ratio"]
    assert (found.value, found.floor, found.verdict) == (0.0, pytest.approx(0.02), "inconclusive")


def test_decisions_at_a_higher_load_are_shown_only(run):
    moved = run.assign(replica="b")
    found = by_share(shares([run, run], [moved, moved], is_calm=False))
    assert (found["replica"].value, found["replica"].verdict) == (0.0, "shown")
    found = by_share(
        shares([run, run], [moved.assign(outcome="rejected")] * 2, is_calm=True, is_judged=False)
    )
    assert {share.verdict for share in found.values()} == {"shown"}


def test_a_request_that_is_missing_on_one_side_is_not_decided_the_same(run):
    assert equal_share(run, run.iloc[:300], "outcome") == pytest.approx(0.75)


def test_refusals_that_reality_did_not_have_are_counted_and_have_no_latency(run):
    other = run.copy()
    other.loc[:39, "outcome"] = "rejected"
    other.loc[:39, ["first_token_ns"]] = pd.NA
    found = by_share(shares([run, run], [other, other], is_calm=True))["refused"]
    assert (found.value, found.verdict) == (pytest.approx(0.1), "fail")
    assert by_name(cells([run, run], [other, other], TIGHT))["E2E mean"].n == 360


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

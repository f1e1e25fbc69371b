"""The definitions, by hand: TTFT, TPOT, E2E, hit ratios, goodput."""

import json

import numpy as np
import pytest

from sim import metrics


@pytest.fixture
def completed(five):
    return five.whole.completed


def test_latencies_of_three_requests_by_hand(completed):
    assert list(metrics.ttft_s(completed)) == [2, 2, 1]
    assert list(metrics.e2e_s(completed)) == [6, 2, 8]
    assert list(metrics.queue_s(completed)) == [0, 1, 0]


def test_tpot_counts_the_gaps_and_leaves_single_tokens_out(completed):
    assert list(metrics.tpot_s(completed)) == [4 / 4, 7 / 2]


def test_hit_ratios_are_over_tokens_and_over_requests(completed):
    assert metrics.token_hit_ratio(completed) == 64 / 200
    assert metrics.request_hit_ratio(completed) == pytest.approx(1 / 3)
    assert metrics.token_hit_ratio(completed.iloc[:0]) is None
    assert metrics.request_hit_ratio(completed.iloc[:0]) is None


def test_percentiles_refuse_samples_that_are_too_small():
    values = np.arange(1.0, 100.0)
    assert metrics.percentile(values, 50.0) == 50.0
    assert metrics.percentile(values, 99.0) is None
    assert metrics.percentile(np.append(values, 100.0), 99.0) == pytest.approx(99.01)
    assert metrics.percentile(np.arange(999.0), 99.9) is None
    assert metrics.percentile(values[:0], 50.0) is None
    assert metrics.percentile(values, 99.5) is None
    assert metrics.percentile(np.arange(1_001.0), 99.9) == pytest.approx(999)
    assert metrics.percentile(values[:1], 95.0) == 1


def test_goodput_counts_what_met_both_objectives_against_all_that_was_offered(five):
    assert metrics.slo_attainment(five.requests, ttft_slo_s=2, tpot_slo_s=1) == 2 / 5
    assert metrics.goodput_per_s(five.requests, ttft_slo_s=2, tpot_slo_s=1) == 2 / 10
    assert metrics.slo_attainment(five.requests, ttft_slo_s=0.5, tpot_slo_s=1) == 0
    assert metrics.slo_attainment(five.requests.iloc[:0], 1, 1) is None
    assert metrics.goodput_per_s(five.requests.iloc[:0], 1, 1) is None


def test_jain_index_is_1_for_equal_parts_and_1_over_k_when_one_has_all():
    assert metrics.jain_index(np.array([3.0, 3.0, 3.0])) == pytest.approx(1)
    assert metrics.jain_index(np.array([9.0, 0.0, 0.0])) == pytest.approx(1 / 3)
    assert metrics.jain_index(np.zeros(3)) is None


def test_summary_by_hand(five):
    summary = metrics.summary(five)
    expected = {
        "completed": 3,
        "rejected": 1,
        "failed": 1,
        "timed_out": 0,
        "cancelled": 0,
        "duration_s": 10,
        "request_throughput_per_s": 0.3,
        "output_throughput_tokens_per_s": 0.9,
        "total_prompt_tokens": 200,
        "total_output_tokens": 9,
        "second_tries": 1,
        "token_hit_ratio": 64 / 200,
        "request_hit_ratio": pytest.approx(1 / 3),
        "mean_ttft_s": pytest.approx(5 / 3),
        "mean_tpot_s": 2.25,
        "mean_queue_s": pytest.approx(1 / 3),
        "n_e2e": 3,
        "n_queue": 3,
        "p50_queue_s": 0,
        "p90_e2e_s": pytest.approx(7.6),
        "jain_index_of_replicas": pytest.approx(9 / (2 * 5)),
        "n_ttft": 3,
        "n_tpot": 2,
        "p50_e2e_s": 6,
        "p99_e2e_s": None,
        "share_a": pytest.approx(1 / 3),
        "share_b": pytest.approx(2 / 3),
    }
    assert {name: summary[name] for name in expected} == expected


def test_a_run_without_requests_has_figures_without_nan(make_run):
    summary = metrics.summary(make_run())
    assert summary["completed"] == 0
    assert summary["mean_e2e_s"] is None
    json.dumps(summary, allow_nan=False)


def test_a_real_run_adds_up(played):
    summary = played.summary
    assert sum(summary[outcome] for outcome in metrics.OUTCOMES) == 600
    assert sum(summary[f"share_{replica}"] for replica in played.replicas) == pytest.approx(1)
    assert summary["p50_ttft_s"] < summary["p50_e2e_s"] < summary["p99_e2e_s"]


def test_cached_tokens_are_summed_over_all_tiers(make_run):
    row = {"outcome": "completed", "prompt_tokens": 100, "output_tokens": 1}
    tiers = {f"cached_tokens_{tier}": number for number, tier in enumerate(metrics.TIERS, start=1)}
    requests = make_run([{**row, **tiers}, row]).requests
    assert list(metrics.cached_tokens(requests)) == [15, 0]
    assert metrics.token_hit_ratio(requests) == 15 / 200


def test_a_request_of_one_token_meets_any_tpot_and_the_bounds_belong_to_the_objective(five):
    assert metrics.slo_attainment(five.requests, ttft_slo_s=2, tpot_slo_s=0.999) == 1 / 5
    assert metrics.slo_attainment(five.requests, ttft_slo_s=1.999, tpot_slo_s=3.5) == 1 / 5
    assert metrics.slo_attainment(five.requests, ttft_slo_s=2, tpot_slo_s=3.5) == 3 / 5


def test_a_run_in_which_nothing_completed_has_counts_and_no_latencies(make_run):
    refused = {"outcome": "rejected", "prompt_tokens": 9, "arrival_ns": 0, "finished_ns": 2_000_000_000}
    summary = metrics.summary(make_run([refused]))
    assert (summary["rejected"], summary["duration_s"]) == (1, 2)
    assert summary["request_throughput_per_s"] == summary["output_throughput_tokens_per_s"] == 0
    gone = ("token_hit_ratio", "mean_ttft_s", "p50_e2e_s", "share_a", "jain_index_of_replicas")
    assert [summary[name] for name in gone] == [None] * len(gone)


def test_all_at_one_moment_has_no_rate(make_run):
    refused = {"outcome": "rejected", "prompt_tokens": 9, "arrival_ns": 5, "finished_ns": 5}
    run = make_run([refused])
    assert run.summary["duration_s"] == 0
    assert run.summary["request_throughput_per_s"] is None
    assert metrics.goodput_per_s(run.requests, 1, 1) is None


def test_latencies_of_a_real_run_are_in_the_order_of_the_phases(played):
    done = played.whole.completed
    assert (metrics.queue_s(done) <= metrics.ttft_s(done)).all()
    assert (metrics.ttft_s(done) <= metrics.e2e_s(done)).all()
    several = done[done["output_tokens"] > 1]
    rebuilt = metrics.ttft_s(several) + metrics.tpot_s(several) * (several["output_tokens"].to_numpy() - 1)
    assert rebuilt.astype(float) == pytest.approx(metrics.e2e_s(several))

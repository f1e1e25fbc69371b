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

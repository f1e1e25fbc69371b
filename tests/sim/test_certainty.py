"""Figures of a single run, beside what they rest on."""

import pytest

from sim.certainty import interval_of, told


def test_a_latency_stands_with_its_interval_and_its_count(played):
    for figure in ("mean_e2e_s", "p50_ttft_s", "p90_ttft_s"):
        (low, high), count = interval_of(played, figure)
        assert low < played.summary[figure] < high
        assert count == 600
    text = told(played, "p50_e2e_s", played.summary["p50_e2e_s"])
    assert text.endswith(", n=600)")
    assert "(95 %: " in text


def test_a_percentile_of_few_values_has_no_interval(five):
    assert interval_of(five, "p50_e2e_s") == (None, 3)
    assert told(five, "p50_e2e_s", 6.0) == "6 (n=3, too few for an interval)"


def test_a_percentile_of_values_that_hang_together_has_no_interval_either(played):
    """Who decodes together is as slow as the others: 600 of them say as much as 27."""
    assert interval_of(played, "p90_tpot_s") == (None, 600)


def test_a_mean_of_a_line_that_only_grows_has_no_interval(make_run):
    rows = [
        {"outcome": "completed", "arrival_ns": at, "first_token_ns": at + 1, "finished_ns": at + at**2}
        for at in range(1, 400)
    ]
    run = make_run(rows)
    assert interval_of(run, "mean_e2e_s") == (None, 399)
    assert told(run, "mean_e2e_s", 5.0) == "5 (n=399, too few, or too much alike, for an interval)"


@pytest.mark.parametrize("figure", ["completed", "token_hit_ratio", "mean_phase_queue_s", "share_a"])
def test_what_is_no_latency_has_no_interval_here(played, figure):
    assert interval_of(played, figure) is None
    assert told(played, figure, 3) == "3"


def test_what_does_not_exist_is_a_dash(five):
    assert told(five, "p99_ttft_s", None) == "-"
    assert interval_of(five, "mean_ttft_s") == (None, 3)

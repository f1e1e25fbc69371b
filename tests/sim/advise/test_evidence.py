"""Shares and latencies of requests whose times are known."""

import pandas as pd
import pytest

from engine.clock import NS_PER_S
from sim.advise.evidence import Candidate, Outcome, judged
from sim.advise.settings import Goal


def requests(*rows):
    """Outcome, TTFT and TPOT in seconds, output tokens."""
    return pd.DataFrame(
        [
            {
                "outcome": outcome,
                "arrival_ns": 5 * NS_PER_S,
                "first_token_ns": int((5 + ttft_s) * NS_PER_S),
                "finished_ns": int((5 + ttft_s + tpot_s * (tokens - 1)) * NS_PER_S),
                "output_tokens": tokens,
            }
            for outcome, ttft_s, tpot_s, tokens in rows
        ]
    )


TEN = requests(*[("completed", place / 10, 0.01, 11) for place in range(1, 9)], *[("rejected", 0, 0, 1)] * 2)


def test_a_refused_request_is_within_no_limit():
    found = judged(TEN, [Goal("ttft", 0.5, ttft_s=0.45), Goal("tpot", 0.9, tpot_s=0.02)])
    assert found.count == 10
    assert found.shares == {"ttft": 0.4, "tpot": 0.8}
    assert found.latencies_s["ttft"] == pytest.approx(0.5)  # half of all, not of those that were served
    assert found.latencies_s["tpot"] == float("inf")


def test_both_limits_together_count_a_request_that_meets_both():
    mixed = requests(("completed", 0.1, 0.5, 3), ("completed", 0.1, 0.01, 3), ("completed", 9, 0.01, 3))
    found = judged(mixed, [Goal("both", 0.5, ttft_s=1.0, tpot_s=0.1)])
    assert found.shares == {"both": pytest.approx(1 / 3)}


def test_a_single_token_has_no_time_between_tokens():
    found = judged(requests(("completed", 0.1, 0.5, 1)), [Goal("tpot", 0.5, tpot_s=0.001)])
    assert found.shares == {"tpot": 1.0}


def candidate(*shares, latency_s=0.1):
    outcomes = {
        seed: Outcome(100, {"ttft": share}, {"ttft": latency_s}) for seed, share in enumerate(shares, 1)
    }
    return Candidate(0, 1.0, [Goal("ttft", 0.9, ttft_s=0.2)], outcomes)


def test_goals_are_met_on_average_over_all_seeds_that_are_asked_for():
    assert candidate(0.95, 0.85).meets([1, 2])
    assert not candidate(0.95, 0.8).meets([1, 2])
    assert not candidate(0.95).meets([1, 2])
    assert candidate(0.95, 0.85).margin([1]) == pytest.approx(0.05)
    assert candidate(0.5, latency_s=0.4).excess([1]) == pytest.approx(2)


def test_a_candidate_whose_run_failed_meets_nothing():
    one = candidate(1.0)
    one.outcomes[2] = Outcome(error="OutOfMemory")
    assert not one.meets([1, 2])
    assert one.margin([1, 2]) == -1

"""Quotas counted again: what is exceeded is named, and what just fits is not."""

import numpy as np
import pandas as pd
import pytest

from sim.recount import beyond_burst, exceeded, most_at_once

S = 1_000_000_000


def served(*rows):
    """Requests by tenant, model, when they were let in and when they ended, with ten tokens each."""
    table = pd.DataFrame(rows, columns=["tenant", "model", "admitted_ns", "finished_ns"])
    times = ["admitted_ns", "finished_ns"]
    table[times] = (table[times] * S).astype("Int64")
    return table.assign(prompt_tokens=8, output_tokens=2)


ROWS = served(
    ("x", "m@1.0.0", 0, 10), ("x", "m@1.0.0", 2, 10), ("y", "m@1.0.0", 5, 12), ("x", "n@1.0.0", 10, 20)
)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"model": "m", "concurrent_requests": 2}, ["model m: 3 requests at once of 2"]),
        ({"model": "*", "concurrent_requests": 3}, []),
        ({"tenant": "x", "concurrent_requests": 2}, []),
        ({"tenant": "*", "hourly_requests": 2}, ["tenant x: 3 requests of 2, hourly"]),
        (
            {"model": "m", "tenant": "*", "hourly_tokens": 19},
            ["model m for tenant x: 20 tokens of 19, hourly"],
        ),
        ({"tenant": "x", "daily_tokens": 30}, []),
        (
            {"tenant": "x", "requests_per_s": 0.1, "burst_requests": 1},
            ["tenant x: 2.000 requests beyond 0.1 a second of 1"],
        ),
        ({"tenant": "x", "requests_per_s": 0.1, "burst_requests": 2}, []),
    ],
)
def test_what_is_exceeded_is_named(rule, told):
    assert exceeded(ROWS, [rule], None) == told


def test_a_rule_for_somebody_goes_before_that_for_each():
    rules = [{"tenant": "*", "hourly_requests": 1}, {"tenant": "x", "hourly_requests": 3}]
    assert exceeded(ROWS, rules, None) == []


def test_models_without_a_rule_have_the_bound_of_all():
    assert exceeded(ROWS, [], 2) == ["model m: 3 requests at once of 2"]
    assert exceeded(ROWS, [{"model": "m", "concurrent_requests": 3}], 2) == []


def test_who_leaves_makes_room_for_who_comes():
    assert most_at_once(np.array([0, 5, 10]), np.array([10, 10, 20])) == 2


def test_a_burst_is_counted_over_every_interval():
    times_s, rate = np.sort(np.random.default_rng(1).uniform(0, 50, 60)), 0.7
    slow = max(j - i + 1 - rate * (times_s[j] - times_s[i]) for i in range(60) for j in range(i, 60))
    assert beyond_burst(times_s, rate) == pytest.approx(slow)

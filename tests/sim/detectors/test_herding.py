"""Choices that run after each other are told; those that are merely random, uneven or unlucky are not."""

import numpy as np
import pytest

from sim.detectors.herding import THRESHOLD
from sim.hindsight import figures


def herds(run):
    return [finding for finding in run.findings if finding.detector == "herding"]


def test_loads_that_are_old_make_a_herd_and_fresh_ones_do_not(bare):
    lines = ["workload.requests=700", "strategy=least_loaded"]
    assert herds(bare(*lines)) == []
    run = bare(*lines, "routing.refresh_s=8")
    (herd,) = herds(run)
    assert herd.severity >= THRESHOLD
    assert "bursts" in herd.says
    assert "llama" in herd.subject
    assert 0 <= herd.begin_s < herd.end_s <= run.manifest["virtual_s"]
    assert herd.count > 60
    worst = run.requests.set_index("request_id").loc[list(herd.requests)]
    waits = worst["started_ns"] - worst["queued_ns"]
    assert waits.mean() > 2 * (run.requests["started_ns"] - run.requests["queued_ns"]).mean()


@pytest.mark.slow
def test_one_replica_that_gets_everything_is_a_hot_spot(bare):
    run = bare("workload.requests=600", "workload.rate=1.5", "strategy.name=only_the_first")
    (herd,) = herds(run)
    assert herd.subject == "replica a"
    assert herd.severity > 0.5
    assert set(run.requests["replica"]) == {"a"}  # the others are known from the decisions alone
    assert figures(run.regret)["best_choice_ratio"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_older_the_loads_the_worse_the_herd(bare, seed):
    lines = [f"seed={seed}", "workload.requests=2000", "strategy=least_loaded"]
    severities = [
        sum(herd.severity * herd.count for herd in herds(bare(*lines, f"routing.refresh_s={refresh_s}")))
        for refresh_s in (0, 4, 16)
    ]
    assert severities[0] == 0 < severities[1] < severities[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("strategy", ["random", "power_of_two", "round_robin"])
def test_chance_and_turns_are_no_herd_however_much_they_cost(bare, strategy, seed):
    run = bare(f"seed={seed}", "workload.requests=2000", f"strategy={strategy}")
    assert run.summary["regret_e2e_ratio"] > THRESHOLD
    assert herds(run) == []


@pytest.mark.slow
def test_weights_are_parts_that_a_replica_should_have(bare):
    run = bare(
        "workload.requests=1500", "workload.rate=1.0", "strategy=weighted_random", "routing.weights={a: 6.0}"
    )
    shares = run.requests["replica"].value_counts(normalize=True)
    assert shares["a"] == pytest.approx(6 / 9, abs=0.05)
    assert herds(run) == []


@pytest.mark.slow
def test_a_share_of_the_decisions_says_the_same(bare):
    lines = ["workload.requests=3000", "strategy=least_loaded", "routing.refresh_s=8"]
    whole, part = (bare(*lines, f"routing.decision_log={share}") for share in (1.0, 0.5))
    assert len(part.decisions) < 0.6 * len(whole.decisions)
    assert herds(whole)
    assert herds(part)
    assert np.isclose(herds(part)[0].severity, herds(whole)[0].severity, atol=0.2)

"""What a choice cost in hindsight: exact where lines are simple, and less for policies that look."""

from itertools import pairwise

import numpy as np
import pytest

import sim
from sim.hindsight import figures, regret
from sim.intervals import paired

S = 1_000_000_000


def row(replica, queued, started, finished, **more):
    times = {"arrival_ns": queued, "loaded_ns": queued, "queued_ns": queued, "started_ns": started}
    times |= {"first_token_ns": finished, "finished_ns": finished}
    return {"outcome": "completed", "replica": replica, "prompt_tokens": 4, "output_tokens": 1} | {
        name: round(value * S) for name, value in (times | more).items()
    }


def regrets(make_run, rows, **fleet):
    run = make_run(rows)
    run.config["fleet"] = {"max_batch": 1, **fleet}
    found = regret(run).set_index("request_id")
    return {number: (found.loc[number, "best"], found.loc[number, "regret_e2e_s"]) for number in found.index}


def test_by_hand_who_waits_behind_ten_seconds_might_have_waited_for_three(make_run):
    rows = [row("a", 0, 0, 10), row("b", 0, 0, 3), row("a", 1, 10, 20)]
    assert regrets(make_run, rows) == {0: ("a", 0), 1: ("b", 0), 2: ("b", pytest.approx(7))}


def test_by_hand_it_takes_the_place_of_the_next_one_in_the_other_line(make_run):
    rows = [row("a", 0, 0, 30), row("b", 0, 0, 4), row("b", 1, 4, 9), row("a", 2, 30, 31), row("b", 3, 9, 12)]
    assert regrets(make_run, rows)[3] == ("b", pytest.approx(31 - 10))  # after two of b, before the third


def test_by_hand_with_places_free_nobody_waits(make_run):
    rows = [row("a", 0, 0, 30), row("b", 0, 0, 30), row("a", 1, 30, 32)]
    assert regrets(make_run, rows)[2][1] == 0
    assert regrets(make_run, rows, max_batch=2)[2] == ("b", pytest.approx(32 - 3))


def test_by_hand_a_shared_server_gives_each_its_part(make_run):
    rows = [row("a", 0, 0, 10), row("a", 0, 0, 10), row("b", 20, 20, 21), row("a", 30, 30, 31)]
    found = regrets(make_run, rows, max_batch=9, discipline="ps")
    assert found[0] == ("b", pytest.approx(5))  # half of ten seconds' work, alone
    assert found[3] == ("a", 0)


def test_what_did_not_complete_or_had_no_choice_is_not_judged(make_run):
    failed = row("a", 0, 0, 5) | {"outcome": "failed"}
    assert list(regrets(make_run, [failed, row("b", 0, 0, 5)])) == [1]
    alone = regret(make_run([row("a", 0, 0, 5)]))
    assert len(alone) == 0
    assert figures(alone)["regret_e2e_ratio"] is None


def play(strategy, seed, folder, *lines):
    rest = ["fleet.replicas=4", "workload.rate=3.2", "scenario.max_errors=1e9", "report=tables"]
    return sim.run(
        "queue", [*rest, f"strategy={strategy}", f"seed={seed}", f"report.folder={folder}", *lines]
    )


def test_who_looks_regrets_less_than_chance_on_the_same_traffic(tmp_path):
    looking, chance = (
        play(name, 1, tmp_path, "workload.requests=500") for name in ("least_loaded", "random")
    )
    assert looking.summary["mean_regret_e2e_s"] < 0.6 * chance.summary["mean_regret_e2e_s"]
    assert looking.summary["best_choice_ratio"] > chance.summary["best_choice_ratio"] + 0.1
    assert chance.summary["regret_e2e_ratio"] == figures(sim.regret(chance))["regret_e2e_ratio"]
    assert (chance.regret["regret_e2e_s"] <= chance.regret["e2e_s"] + 1e-9).all()


@pytest.mark.slow
def test_paired_over_seeds_the_order_of_policies_is_that_of_their_regret(tmp_path):
    names = ("least_loaded", "power_of_two", "round_robin", "random")
    mean = {
        name: [
            play(name, seed, tmp_path, "workload.requests=1500").summary["mean_regret_e2e_s"]
            for seed in range(1, 5)
        ]
        for name in names
    }
    for better, worse in pairwise(names[:3]):
        assert paired(mean[worse], mean[better]).low > 0, (better, worse)
    assert np.mean(mean["random"]) > np.mean(mean["round_robin"])


@pytest.mark.slow
def test_without_decisions_on_record_the_requests_table_tells_as_much(tmp_path):
    with_log, without = (
        play("random", 1, tmp_path, "workload.requests=800", f"routing.decision_log={share}")
        for share in (1.0, 0.0)
    )
    assert without.decisions.empty
    columns = ["request_id", "chosen", "best", "regret_e2e_s"]
    one, other = (
        run.regret[columns].sort_values("request_id", ignore_index=True) for run in (with_log, without)
    )
    assert one.equals(other)

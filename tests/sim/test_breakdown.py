"""Parts of a request's time sum to the whole, whatever became of it."""

import numpy as np
import pandas as pd
import pytest

import sim
from sim.breakdown import MARKS, PHASES, breakdown, means_s


def row(**marks):
    times = {"arrival_ns": 100, **dict.fromkeys(MARKS), "finished_ns": 900, **marks}
    return pd.DataFrame([times]).astype("Int64")


def parts(**marks):
    found = breakdown(row(**marks)).iloc[0]
    return {name: int(found[f"{name}_ns"]) for name in PHASES if found[f"{name}_ns"]}


def test_an_ordinary_request_has_each_part():
    marks = dict(zip(MARKS, (110, 130, 130, 170, 250, 410), strict=True))
    assert parts(**marks) == {
        "load": 10,
        "admit": 20,
        "transfer": 40,
        "queue": 80,
        "prefill": 160,
        "decode": 490,
    }


def test_who_ends_early_spent_the_rest_where_it_ended():
    assert parts() == {"load": 800}
    assert parts(loaded_ns=100) == {"admit": 800}
    marks = {"loaded_ns": 100, "admitted_ns": 150, "tried_ns": 150, "queued_ns": 160}
    assert parts(**marks) == {"admit": 50, "transfer": 10, "queue": 740}


def test_a_mark_that_was_never_set_took_no_time_where_a_later_one_was():
    assert parts(admitted_ns=150, tried_ns=150, queued_ns=150, started_ns=150, first_token_ns=200) == {
        "admit": 50,
        "prefill": 50,
        "decode": 700,
    }


def test_lost_attempts_are_a_part_even_behind_the_first_token():
    marks = dict(zip(MARKS, (100, 100, 500, 500, 550, 300), strict=True))
    assert parts(**marks) == {"retry": 400, "queue": 50, "decode": 350}


def test_no_requests_have_no_parts():
    assert len(breakdown(row().iloc[:0])) == 0


@pytest.mark.parametrize(
    "lines",
    [
        ["failover"],
        ["steady", "tiers=five", "tiers.gpu.gib=0.01", "workload.prefixes=4"],
        ["steady", "quotas=concurrent", "workload.rate=60", "scenario.max_not_completed=1000"],
    ],
)
def test_parts_sum_to_the_whole_in_every_run(lines, tmp_path):
    scenario, *more = lines
    more += ["executor=roofline", "report=tables", "workload=chat", "workload.requests=150"]
    run = sim.run(scenario, [*more, f"report.folder={tmp_path}"])
    found = breakdown(run.requests)
    whole = (run.requests["finished_ns"] - run.requests["arrival_ns"]).to_numpy(dtype=np.int64)
    assert (found.sum(axis=1).to_numpy() == whole).all()
    assert (found >= 0).all().all()
    assert found["prefill_ns"].sum() > 0
    assert found["decode_ns"].sum() > 0
    if scenario == "failover":
        again = found["retry_ns"] > 0  # some lose their first replica at the very moment at which they come
        assert again.any()
        assert (run.requests.loc[again, "attempts"] > 1).all()


def test_means_by_replica_weigh_up_to_the_mean_of_all(tmp_path):
    lines = ["executor=roofline", "report=tables", "workload=chat", "workload.requests=90"]
    run = sim.run("steady", [*lines, f"report.folder={tmp_path}"])
    each, whole = means_s(run.requests, "replica"), means_s(run.requests)
    assert list(each.index) == ["a", "b", "c"]
    counts = run.requests["replica"].value_counts().sort_index().to_numpy()
    assert np.average(each["decode_s"], weights=counts) == pytest.approx(whole["decode_s"].iloc[0])
    assert run.summary["mean_phase_decode_s"] == pytest.approx(whole["decode_s"].iloc[0])
    assert sum(run.summary[f"mean_phase_{name}_s"] for name in PHASES) == pytest.approx(
        run.summary["mean_e2e_s"]
    )
